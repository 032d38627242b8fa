"""What a stale update counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_core import Asynchronous, Plan, RoundPolicy
from flare_core._model import shifted
from flare_core.federation import Staleness, staleness_of


@pytest.mark.parametrize(
    ("staleness", "pace"), [(0, 1.0), (1, 0.7071068), (3, 0.5), (8, 1 / 3)]
)
def test_a_step_is_shorter_the_staler_it_is(staleness: int, pace: float) -> None:
    """The pinned weights of FedBuff, 1 / sqrt(1 + s)."""
    plan = Plan(rounds=1, topology=Asynchronous(buffer=1))

    assert staleness_of(plan).pace(staleness) == pytest.approx(pace)
    assert staleness_of(plan).num_examples(7) == 7


def test_a_round_too_late_counts_with_a_share_of_its_examples() -> None:
    plan = Plan(rounds=1, round=RoundPolicy(grace_s=1, late_weight=0.25))

    found = staleness_of(plan)

    assert (found.most, found.pace(1)) == (1, 1.0)
    assert [found.num_examples(n) for n in (1, 2, 8)] == [1, 1, 2]
    assert staleness_of(Plan(rounds=1)) == Staleness(most=0)


@given(
    st.floats(-1e3, 1e3, width=32),
    st.floats(-1e3, 1e3, width=32),
    st.floats(-1e3, 1e3, width=32),
    st.integers(0, 100),
)
def test_a_step_is_taken_from_the_newest_model(
    trained: float, base: float, newest: float, staleness: int
) -> None:
    arrays = [np.array([value], np.float32) for value in (trained, base, newest)]
    pace = Staleness(most=100, shortens=True).pace(staleness)

    (got,) = shifted(*arrays, pace=pace)

    assert got == np.float32(newest + pace * (trained - base))


def test_a_counter_is_no_step() -> None:
    trained, base, newest = (np.array([value], np.int64) for value in (7, 3, 9))

    assert shifted(trained, base, newest, pace=0.5) == 7
