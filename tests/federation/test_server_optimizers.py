"""Each server optimizer is that of its paper: numbers that were worked out by hand."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from averaging import Averaging, DivergedError
from flare_core import ModelState, Strategy, TensorClass
from flare_core.federation import (
    DiLoCo,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
)

Start: TypeAlias = Callable[..., Averaging]
ALL = (FedAvg(), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad(), DiLoCo())
_VALUES = st.floats(-1e6, 1e6, width=32)
_UPDATES = st.lists(st.tuples(_VALUES, st.integers(1, 999)), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start rounds from a model of one number, or from the tensors given."""

    def start(strategy: Strategy, value: float = 0.0, dtype: str = "f8") -> Averaging:
        first = {"w": np.full(1, value, dtype)}
        return Averaging(tmp_path_factory.mktemp("spool"), strategy, first)

    return start


def _step(averaging: Averaging, delta: float) -> float:
    """Have all sites go a step from the global model; return how far it went."""
    before = averaging.model["w"]
    after = averaging.play(({"w": (before + delta).astype(before.dtype)}, 3))["w"]
    return float(after[0] - before[0])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (FedAvg(), [1, 1, 1]),
        (FedAvgM(), [1, 1.9, 2.71]),
        (FedAvgM(learning_rate=0.5, momentum=0.5), [0.5, 0.75, 0.875]),
        (DiLoCo(), [0.7 * 1.9, 0.7 * 2.71, 0.7 * 3.439]),
        (FedAdam(tau=1e-12), [0.1, 0.19 / np.sqrt(1.99), 0.271 / np.sqrt(2.9701)]),
        (FedYogi(tau=1e-12), [0.1, 0.19 / np.sqrt(2), 0.271 / np.sqrt(3)]),
        (FedAdagrad(tau=1e-12), [0.1, 0.1 / np.sqrt(2), 0.1 / np.sqrt(3)]),
        (FedAdam(tau=1.0), [0.01 / 2, 0.019 / 2, 0.0271 / 2]),
        (FedAdagrad(tau=1.0), [0.1 / (1 + 2**0.5), 0.1 / (1 + 3**0.5), 0.1 / 3]),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "exact"), [("f8", 1e-9), ("f4", 2e-6)])
def test_the_first_steps_are_those_of_the_paper(
    strategy: Strategy, expected: list[float], dtype: str, exact: float, start: Start
) -> None:
    rounds = start(strategy, dtype=dtype)

    steps = [_step(rounds, 1.0) for _ in expected]

    assert steps == pytest.approx(expected, rel=exact)


def test_yogi_lets_go_of_a_large_step_slowly_and_adam_at_once(start: Start) -> None:
    adam, yogi = start(FedAdam(beta1=0)), start(FedYogi(beta1=0))

    for rounds in (adam, yogi):
        _step(rounds, 10.0)
    after = [[_step(rounds, 0.1) for _ in range(100)][-1] for rounds in (adam, yogi)]

    # by hand: v of Adam decays to 10^2 * .01 * .99^100, that of Yogi by .01 * .1^2 each
    second = 1.0 * 0.99**100 + 0.1**2 * (1 - 0.99**100), 1.0 - 100 * 0.01 * 0.1**2
    expected = [0.1 * 0.1 / (v**0.5 + 1e-3) for v in second]
    assert after == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_the_momentum_of_a_constant_step_is_the_geometric_sum(
    dtype: str, start: Start
) -> None:
    rounds = start(FedAvgM(), dtype=dtype)

    steps = [_step(rounds, 1.0) for _ in range(7)]

    assert steps[-1] == pytest.approx((1 - 0.9**7) / (1 - 0.9), rel=1e-6)
    assert round(steps[-1], 6) == pytest.approx(5.217031, abs=2e-6)


def test_the_first_step_of_adam_is_the_learning_rate_and_not_less(start: Start) -> None:
    assert _step(start(FedAdam(tau=1e-12)), 1.0) == pytest.approx(0.1, rel=1e-10)


@settings(max_examples=40)
@given(st.lists(_UPDATES, min_size=1, max_size=3), st.sampled_from(["f4", "f8", "f2"]))
@example([[(0.0, 1)], [(-0.0, 1)]], "f4")
def test_gradient_descent_of_rate_one_at_the_server_is_federated_averaging(
    start: Start, rounds: list[list[tuple[float, int]]], dtype: str
) -> None:
    plain, server = (
        start(FedAvg(), -0.0, dtype),
        start(FedAvgM(momentum=0), -0.0, dtype),
    )

    for updates in rounds:
        sent = [
            ({"w": np.asarray([value]).clip(-6e4, 6e4).astype(dtype)}, number)
            for value, number in updates
        ]

        assert plain.play(*sent)["w"].tobytes() == server.play(*sent)["w"].tobytes()


@pytest.mark.parametrize("strategy", ALL, ids=str)
@settings(max_examples=40)
@given(value=_VALUES, counts=st.lists(st.integers(1, 999), min_size=1, max_size=4))
def test_sites_that_change_nothing_change_nothing(
    start: Start, strategy: Strategy, value: float, counts: list[int]
) -> None:
    rounds = start(strategy, value, "f4")

    for _ in range(2):
        rounds.play(*[({"w": rounds.model["w"]}, number) for number in counts])

    assert rounds.model["w"][0] == value


@settings(max_examples=40)
@given(values=st.lists(_VALUES, min_size=1, max_size=5), number=st.integers(1, 999))
def test_sites_that_agree_are_followed_by_federated_averaging(
    start: Start, values: list[float], number: int
) -> None:
    rounds = start(FedAvg(), dtype="f4")

    for value in values:
        rounds.play(*[({"w": np.asarray([value], np.float32)}, number)] * 3)

        assert rounds.model["w"][0] == value


def _network(seed: int) -> ModelState:
    rng = np.random.default_rng(seed)
    return ModelState(
        {
            "weight": rng.normal(size=(400, 401)).astype(np.float32),
            "phase": rng.normal(size=(9, 2)).view(np.complex128).astype(np.complex64),
            "half": rng.normal(size=70).astype(np.float16),
            "running_var": rng.uniform(0, 1e-3, size=30).astype(np.float32),
            "num_batches_tracked": np.int64(7 + seed),
        },
        classes={"running_var": TensorClass.BUFFER},
    )


@pytest.mark.parametrize("strategy", ALL, ids=str)
def test_threads_and_a_restart_in_every_round_change_no_bit(
    strategy: Strategy, tmp_path: Path
) -> None:
    ends: list[bytes] = []
    for number in (1, 4):
        folder = tmp_path / str(number)
        folder.mkdir()
        with ThreadPoolExecutor(number) as pool:
            rounds = Averaging(folder, strategy, _network(0), pool.map)
            for seed in range(1, 4):
                rounds.play((_network(seed), 3), (_network(seed + 5), 4))
                if number > 1:
                    rounds.restart()
        ends.append(b"".join(one.tobytes() for one in rounds.model.values()))

    assert ends[0] == ends[1]


@pytest.mark.parametrize("strategy", ALL, ids=str)
def test_buffers_and_counters_never_enter_the_optimizer(
    strategy: Strategy, tmp_path: Path
) -> None:
    """With FedAdam over all tensors, a running_var is negative at round 12."""
    rounds = Averaging(tmp_path, strategy, _network(0))

    for seed in range(1, 15):
        rounds.play((_network(seed), 1), (_network(seed + 1), 3))
        one, other = (_network(seed + i)["running_var"] for i in (0, 1))
        mean = (one.astype(np.float64) + 3.0 * other.astype(np.float64)) / 4

        assert rounds.model["running_var"].min() >= 0
        assert rounds.model["running_var"].tobytes() == (
            mean.astype(np.float32).tobytes()
        )
        assert rounds.model["num_batches_tracked"].dtype == np.int64
        assert rounds.model["num_batches_tracked"] == 7 + seed + 1


def test_complex_parameters_move_as_the_two_real_numbers_that_they_are(
    tmp_path: Path,
) -> None:
    pairs = np.random.default_rng(1).normal(size=(3, 8, 2)).astype(np.float32)
    ends: list[bytes] = []
    for kind, name in ((np.complex64, "complex"), (np.float32, "real")):
        folder = tmp_path / name
        folder.mkdir()
        first, *sent = (one.reshape(-1).view(kind) for one in pairs)
        rounds = Averaging(folder, FedAdam(), {"w": first})
        for update in sent:
            rounds.play(({"w": update}, 1))
        ends.append(rounds.model["w"].tobytes())

    assert ends[0] == ends[1]


@pytest.mark.parametrize("strategy", [FedAvgM(), FedAdam()], ids=str)
def test_a_model_that_an_optimizer_made_infinite_is_refused_by_its_tensor(
    strategy: Strategy, start: Start
) -> None:
    rounds = start(strategy, -3e38, "f4")

    with pytest.raises(DivergedError, match=r"made tensor 'w', .* lower its learning"):
        rounds.play(({"w": np.asarray([3e38], np.float32)}, 1))
