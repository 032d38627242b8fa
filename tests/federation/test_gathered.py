"""What all aggregations have in common that need all updates of a round."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging import Averaging, DivergedError
from combined import SEEDS, Weights, combined, few, honest_sites, vector
from flare_core import Aggregation, ModelState, TensorClass
from flare_core._model import Array
from flare_core.application._worker import Worker
from flare_core.federation import (
    Bulyan,
    CentredClipping,
    Each,
    FedAdam,
    FedAvg,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NormBounding,
    TrimmedMean,
)
from flare_core.federation._fold import PART_ELEMENTS

_BOUNDED = [
    Bulyan(),
    Median(),
    TrimmedMean(hostile=2),
    TrimmedMean(hostile=3),
    Krum(hostile=2),
    MultiKrum(hostile=2),
    GeometricMedian(),
    NormBounding(most_norm=1.0),
    CentredClipping(radius=1.0),
    CentredClipping(radius=0.5, iterations=3),
]


@pytest.mark.parametrize("rule", _BOUNDED, ids=str)
@few
@given(SEEDS, st.sampled_from([1e3, 1e9, 1e30, 1e38]), st.integers(0, 6))
def test_one_site_of_seven_moves_the_model_by_a_bounded_amount_only(
    rule: Aggregation, seed: int, far: float, place: int
) -> None:
    sites = [one.astype(np.float32) for one in honest_sites(seed, 7)]
    sites[place] = np.full(50, np.float32(far))
    honest = [one for at, one in enumerate(sites) if at != place]

    moved = combined(rule, *(({"w": one}, 1) for one in sites))["w"]
    averaged = combined(Mean(), *(({"w": one}, 1) for one in sites))["w"]

    middle = np.mean(honest, axis=0)
    spread = max(np.linalg.norm(one) for one in honest)
    assert np.linalg.norm(moved.astype(np.float64) - middle) < 3 * spread
    assert averaged.min() > far / 10


@pytest.mark.parametrize("rule", _BOUNDED, ids=str)
@few
@given(SEEDS)
def test_updates_that_are_the_same_are_what_comes_out(
    rule: Aggregation, seed: int
) -> None:
    same = np.random.default_rng(seed).normal(size=50).astype(np.float32) / 100

    found = combined(rule, *(({"w": same}, n) for n in (1, 2, 3, 4, 5, 6, 7)))

    np.testing.assert_array_equal(found["w"], same)


@pytest.mark.parametrize(
    "rule",
    [
        GeometricMedian(),
        Krum(),
        Median(),
        TrimmedMean(hostile=2),
    ],
    ids=str,
)
def test_an_infinitely_long_step_does_no_harm(rule: Aggregation) -> None:
    honest = honest_sites(5, 6)

    found = vector(rule, *honest, np.full(50, 1e300))

    assert np.linalg.norm(found - np.mean(honest, axis=0)) < 20


def _large(site: int) -> dict[str, Array]:
    rng = np.random.default_rng(site)
    size = PART_ELEMENTS + 1234
    return {
        "w": rng.normal(size=(2, size // 2)).astype(np.float32),
        "z": (rng.normal(size=333) + 1j).astype(np.complex64),
        "running": rng.normal(size=77).astype(np.float16),
        "count": np.asarray(site, np.int64),
    }


@pytest.mark.parametrize("rule", _BOUNDED, ids=str)
def test_the_number_of_threads_changes_no_bit(rule: Aggregation) -> None:
    classes = {"running": TensorClass.BUFFER}
    first = ModelState(_large(99), classes=classes)
    updates = [(_large(site), site + 1) for site in range(7)]

    def model(each: Each) -> bytes:
        found = combined(rule, *updates, first=first, each=each)
        return b"".join(one.tobytes() for one in found.values())

    with closing(Worker(lambda _: None, num_threads=4)) as worker:
        assert model(worker.each) == model(map)


@pytest.mark.parametrize("rule", _BOUNDED, ids=str)
def test_buffers_are_combined_too_and_counters_take_their_maximum(
    rule: Aggregation,
) -> None:
    names = ("w", "running", "count")
    first = ModelState(
        {"w": np.zeros(3), "running": np.zeros(3), "count": np.int64(0)},
        classes={"running": TensorClass.BUFFER},
    )
    updates = list[tuple[Weights, int]]()
    for site, v in enumerate((0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1e9)):
        values = np.full(3, v)
        updates.append(({"w": values, "running": values, "count": np.int64(site)}, 1))

    found = combined(rule, *updates, first=first)

    w, running, count = (found[name] for name in names)
    assert running.tolist() == pytest.approx(w.tolist())
    assert running.max() < 1
    assert count == 6


@pytest.mark.parametrize("rule", _BOUNDED, ids=str)
def test_a_site_that_lies_in_a_buffer_only_is_found_out(rule: Aggregation) -> None:
    first = ModelState(
        {"w": np.zeros(3), "running": np.zeros(3)},
        classes={"running": TensorClass.BUFFER},
    )
    w = np.asarray([0.1, 0.2, 0.3])
    lie = {"w": w, "running": np.full(3, 1e9)}  # none is nearer to all others in w
    honest = [
        {"w": w + 0.1 * np.eye(3)[site % 3] * (-1) ** site, "running": w}
        for site in range(6)
    ]

    found = combined(rule, *((one, 1) for one in (lie, *honest)), first=first)

    assert np.abs(found["running"]).max() < 1


def test_a_round_of_too_few_updates_makes_nothing(tmp_path: Path) -> None:
    rounds = Averaging(tmp_path, FedAvg(), {"w": [0.0]}, rule=Median())

    with pytest.raises(DivergedError, match="made of 2 updates, and needs 3"):
        rounds.play(({"w": [1.0]}, 1), ({"w": [2.0]}, 1))


class _Alike(Aggregation, frozen=True):
    """Says nothing."""


def test_what_a_class_does_not_define_is_the_mean_in_which_all_count_the_same() -> None:
    found = combined(_Alike(), ({"w": [1.0]}, 1), ({"w": [4.0]}, 9))

    assert found["w"].tolist() == [2.5]


def test_every_optimizer_goes_on_from_what_came_of_the_updates(
    tmp_path: Path,
) -> None:
    adam = FedAdam(learning_rate=0.1, tau=1e-9)
    rounds = Averaging(tmp_path, adam, {"w": [0.0]}, rule=Median())

    model = rounds.play(*(({"w": [v]}, 1) for v in (1.0, 1.0, -1e6)))

    assert model["w"] == pytest.approx([0.1])
