"""Updates that are weighed otherwise than by their examples."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging import Averaging
from flare_core import Contribution, ModelState, Strategy, TensorClass
from flare_core.federation import FedAvg, FedNova, QFedAvg

_CURVATURE, _OPTIMUM = (1.0, 4.0), (0.0, 1.0)
"""Two sites with a loss a (w - c)^2 / 2 each; together they have it least at 0.8."""


def _trained(site: int, w: float, *, rate: float, num_steps: int) -> float:
    for _ in range(num_steps):
        w -= rate * _CURVATURE[site] * (w - _OPTIMUM[site])
    return w


def _loss(site: int, w: float) -> float:
    return _CURVATURE[site] * (w - _OPTIMUM[site]) ** 2 / 2


def _one(**said: float) -> Contribution:
    counts = {name: int(value) for name, value in said.items() if name != "loss"}
    num_steps = counts.get("num_steps", 0)
    metrics: Mapping[str, float] = {"loss": said["loss"]} if "loss" in said else {}
    return Contribution(
        site="a",
        global_metrics=metrics,
        num_examples=counts["num_examples"],
        num_steps=num_steps,
    )


def _end(strategy: Strategy, num_steps: tuple[int, int], num_rounds: int) -> float:
    """Return where the global model ends, for two sites with as many examples."""
    w = 0.0
    for _ in range(num_rounds):
        said = [_one(num_examples=1, num_steps=one) for one in num_steps]
        sent = [
            _trained(site, w, rate=1e-3, num_steps=one)
            for site, one in enumerate(num_steps)
        ]
        weights = [strategy.weight(one) for one in said]
        mean = float(np.average(sent, weights=weights))
        w += strategy.reach(said) * (mean - w)
    return w


def test_sites_that_take_more_steps_pull_the_mean_and_not_fednova() -> None:
    averaged = _end(FedAvg(), (2, 10), 20_000)
    normalised = _end(FedNova(), (2, 10), 20_000)

    assert averaged == pytest.approx(0.9515823846703464, abs=1e-12)
    assert normalised == pytest.approx(0.797190192357744, abs=1e-12)


def test_fednova_goes_by_the_effective_number_of_steps(tmp_path: Path) -> None:
    rounds = Averaging(tmp_path, FedNova(), {"w": np.zeros(2)})
    one = _one(num_examples=30, num_steps=2)
    other = _one(num_examples=10, num_steps=10)

    model = rounds.play(({"w": [4.0, 0.0]}, one), ({"w": [0.0, 50.0]}, other))

    # effective steps .75 * 2 + .25 * 10 = 4, times .75 * 4 / 2 and .25 * 50 / 10
    assert model["w"] == pytest.approx([4 * 1.5, 4 * 1.25], rel=1e-15)


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 10**6)), min_size=1),
    st.integers(1, 10**4),
)
def test_fednova_is_federated_averaging_where_all_take_as_many_steps(
    updates: list[tuple[float, int]], num_steps: int
) -> None:
    said = [_one(num_examples=number, num_steps=num_steps) for _, number in updates]
    sent = [value for value, _ in updates]

    weights = [FedNova().weight(one) for one in said]

    plain = np.average(sent, weights=[one.num_examples for one in said])
    assert FedNova().reach(said) == pytest.approx(1, rel=1e-14)
    assert np.average(sent, weights=weights) == pytest.approx(plain, abs=1e-10)


def test_q_fedavg_goes_as_its_paper_says(tmp_path: Path) -> None:
    q, rate = 2.0, 0.25
    losses, examples = (3.0, 0.5), (10, 30)
    deltas = np.array([[1.0, 2.0], [-1.0, 0.5]])
    rounds = Averaging(
        tmp_path, QFedAvg(q=q, learning_rate=rate), {"w": np.array([1.0, 1.0])}
    )

    model = rounds.play(
        *(
            ({"w": 1.0 + delta}, _one(num_examples=number, loss=loss))
            for delta, number, loss in zip(deltas, examples, losses, strict=True)
        )
    )

    gradients, shares = -deltas / rate, np.array(examples) / sum(examples)
    powers = np.array(losses) ** q
    bounds = q * np.array(losses) ** (q - 1) * (gradients**2).sum(1) + powers / rate
    step = -(shares * powers) @ gradients / (shares @ bounds)
    assert model["w"] == pytest.approx(1.0 + step, rel=1e-14)


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5),
    losses=st.lists(st.floats(0, 10), min_size=5, max_size=5),
)
def test_without_fairness_q_fedavg_is_federated_averaging_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], losses: list[float]
) -> None:
    ends: list[bytes] = []
    for strategy in (FedAvg(), QFedAvg(q=0, learning_rate=0.1)):
        folder = tmp_path_factory.mktemp("spool")
        rounds = Averaging(folder, strategy, {"w": np.zeros(1, np.float32)})
        said = zip(values, losses, strict=False)
        updates = [
            ({"w": np.asarray([value], np.float32)}, _one(num_examples=7, loss=loss))
            for value, loss in said
        ]
        ends.append(rounds.play(*updates)["w"].tobytes())

    assert ends[0] == ends[1]


def _spread(q: float) -> float:
    """Return how far apart the losses of the two sites are in the end."""
    strategy, w = QFedAvg(q=q, learning_rate=0.1), 0.0
    for _ in range(3000):
        sent = [_trained(site, w, rate=0.1, num_steps=1) for site in (0, 1)]
        said = [
            Contribution(
                site="a",
                num_examples=1,
                global_metrics={"loss": _loss(site, w)},
                squared_norm=(sent[site] - w) ** 2,
            )
            for site in (0, 1)
        ]
        mean = float(np.average(sent, weights=[strategy.weight(one) for one in said]))
        w += strategy.reach(said) * (mean - w)
    return abs(_loss(0, w) - _loss(1, w))


def test_the_losses_of_the_sites_are_closer_the_more_fairness_counts() -> None:
    spreads = [_spread(q) for q in (0, 1, 5)]

    assert spreads[0] == pytest.approx(_loss(0, 0.8) - _loss(1, 0.8), abs=1e-6)
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e15), st.floats(0, allow_nan=False), st.integers(1, 2**53 - 1)
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 10),
)
def test_nothing_that_a_site_may_say_ends_a_round_of_q_fedavg(
    said: list[tuple[float, float, int]], q: float
) -> None:
    strategy = QFedAvg(q=q, learning_rate=1000)
    updates = [
        replace(_one(num_examples=number, loss=loss), squared_norm=norm)
        for loss, norm, number in said
    ]

    weights = [strategy.weight(one) for one in updates]

    assert all(0 < weight < np.inf for weight in weights)
    assert 0 <= strategy.reach(updates) <= 1


def test_a_site_without_any_loss_weighs_next_to_nothing() -> None:
    strategy = QFedAvg(q=0.5, learning_rate=0.1)
    said = [_one(num_examples=5, loss=0.0)]

    assert 0 < strategy.weight(said[0]) < 1e-4
    assert strategy.reach(said) == 1


@pytest.mark.parametrize("strategy", [FedNova(), QFedAvg(q=2, learning_rate=0.1)])
def test_buffers_are_averaged_by_examples_all_the_same(
    strategy: Strategy, tmp_path: Path
) -> None:
    first = ModelState(
        {"w": np.zeros(1), "running": np.zeros(1)},
        classes={"running": TensorClass.BUFFER},
    )
    rounds = Averaging(tmp_path, strategy, first)
    one = _one(num_examples=30, num_steps=2, loss=1.0)
    other = _one(num_examples=10, num_steps=10, loss=3.0)

    model = rounds.play(
        ({"w": [4.0], "running": [4.0]}, one), ({"w": [8.0], "running": [8.0]}, other)
    )

    assert model["running"] == [5.0]
    assert model["w"] != [5.0]


def test_fednova_refuses_who_does_not_count_steps() -> None:
    refusal = FedNova().refusal(_one(num_examples=5))

    assert "site 'a': num_steps: expected its optimizer steps" in str(refusal)
    assert "round.submit(..., num_steps=...)" in str(refusal)
    assert FedNova().refusal(_one(num_examples=5, num_steps=1)) is None


@pytest.mark.parametrize(
    ("metrics", "got"),
    [
        ({}, "got no such metric, but none at all; have the script evaluate"),
        ({"acc": 1.0, "f1": 1.0}, "got no such metric, but acc, f1; have the script"),
        ({"loss": float("nan")}, "got nan; "),
        ({"loss": float("inf")}, "got inf; "),
        ({"loss": -0.5}, "got -0.5; "),
        ({"loss": 1e200}, "got 1e+200; "),
    ],
)
def test_q_fedavg_refuses_who_does_not_say_the_loss(
    metrics: Mapping[str, float], got: str
) -> None:
    said = Contribution(site="a", num_examples=5, global_metrics=metrics)

    refusal = QFedAvg(learning_rate=0.1).refusal(said)

    assert "site 'a': global metric 'loss': expected the loss of the global" in (
        str(refusal)
    )
    assert got in str(refusal)


def test_q_fedavg_averages_plainly_before_its_first_round() -> None:
    strategy = QFedAvg(learning_rate=0.1, q=3, from_round=1)
    first = Contribution(site="a", num_examples=5, squared_norm=9.0)
    second = replace(first, round_number=1)

    assert strategy.refusal(first) is None
    assert (strategy.weight(first), strategy.reach([first])) == (5, 1)
    assert "or, if only the first model is not evaluated, set" in (
        str(strategy.refusal(second))
    )


def test_q_fedavg_takes_the_metric_that_it_is_told() -> None:
    said = Contribution(site="a", num_examples=5, global_metrics={"val_loss": 2.0})
    strategy = QFedAvg(learning_rate=0.1, q=3, metric="val_loss")

    assert strategy.refusal(said) is None
    assert strategy.weight(said) == 5 * 2.0**3
