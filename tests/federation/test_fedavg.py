import numpy as np
import pytest

from averaging import assembled
from flare_core import ModelState
from flare_core._model import Array
from flare_core.federation import FedAvg, Fold, Round, Strategy

SIZES = {"a": 3, "b": 17, "c": 80}
RATE = 0.05
ROUNDS = 20


def _data() -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(sum(SIZES.values()), 4))
    return x, x @ [1.0, -2.0, 0.5, 3.0] + rng.normal(size=len(x))


def _step(w: Array, x: Array, y: Array) -> Array:
    """One step of full-batch gradient descent on the mean squared error."""
    return np.asarray(w - RATE * 2 * x.T @ (x @ w - y) / len(x))


def _federated(num_examples: dict[str, int]) -> Array:
    x, y = _data()
    ends = np.cumsum(list(SIZES.values()))[:-1]
    parts = zip(np.split(x, ends), np.split(y, ends), strict=True)
    shares = dict(zip(SIZES, parts, strict=True))
    strategy = FedAvg()
    model = ModelState({"w": np.zeros(4)})
    for number in range(ROUNDS):
        played = Round(number, SIZES, quorum=3)
        updates: dict[str, ModelState] = {}
        for site, (its_x, its_y) in reversed(shares.items()):
            updates[site] = ModelState({"w": _step(model["w"], its_x, its_y)})
            assert played.receive(site, number, num_examples[site])
        model = _next(model, played, updates, strategy)
    return model["w"]


def _next(
    model: ModelState, played: Round, updates: dict[str, ModelState], strategy: Strategy
) -> ModelState:
    fold = Fold(model.layout)
    for site in played.ready:
        fold.add(updates[site], played.num_examples[site])
    return assembled(
        fold,
        model.layout,
        lambda part: strategy.step(part, part.of(model), fold.mean(part), {}),
    )


def _centralised() -> Array:
    x, y = _data()
    w: Array = np.zeros(4)
    for _ in range(ROUNDS):
        w = _step(w, x, y)
    return w


def test_federated_averaging_is_gradient_descent_on_all_data() -> None:
    np.testing.assert_allclose(_federated(SIZES), _centralised(), rtol=0, atol=1e-12)


def test_without_the_sizes_as_weights_it_is_not() -> None:
    uniform = _federated(dict.fromkeys(SIZES, 1))

    assert np.abs(uniform - _centralised()).max() > 1e-3


def _logistic(w: Array, x: Array, y: Array) -> Array:
    """One step of full-batch gradient descent on the logistic loss."""
    gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y)
    return np.asarray(w - 0.3 * gradient)


def test_one_step_at_each_site_is_one_step_on_all_data_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    sizes = [37, 5, 158]
    shares = [(rng.normal(size=(n, 12)), rng.integers(0, 2, n)) for n in sizes]
    w = rng.normal(size=12)
    updates = [ModelState({"w": _logistic(w, *share)}) for share in shares]
    together = _logistic(w, *map(np.concatenate, zip(*shares, strict=True)))

    by_size, uniform = _mean(updates, sizes), _mean(updates, [1, 1, 1])

    assert np.abs(by_size - together).max() <= 4.5e-16
    assert np.abs(uniform - together).max() > 1e-2


def _mean(updates: list[ModelState], counts: list[int]) -> Array:
    fold = Fold(updates[0].layout)
    for update, num_examples in zip(updates, counts, strict=True):
        fold.add(update, num_examples)
    return assembled(fold, updates[0].layout, fold.mean)["w"]


def test_many_steps_at_each_site_end_beside_the_optimum_where_the_paper_says() -> None:
    """Quadratic losses; SCAFFOLD would end at 0.8 (Karimireddy et al., 2020)."""
    curvature, optimum = np.array([1.0, 4.0]), np.array([0.0, 1.0])
    went = 1 - (1 - 0.1 * curvature) ** 10
    w, quadratics = np.zeros(1), list(zip(went, optimum, strict=True))
    for _ in range(500):
        local = [ModelState({"w": w + g * (c - w)}) for g, c in quadratics]
        w = _mean(local, [1, 1])

    assert w[0] == pytest.approx((went * optimum).sum() / went.sum(), abs=1e-15)
    assert w[0] == pytest.approx(0.6041260076631996, abs=1e-15)
