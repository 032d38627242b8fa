"""Bulyan."""

import numpy as np
from hypothesis import given

from combined import SEEDS, few, honest_sites, vector
from flare_core.federation import Bulyan, Krum, MultiKrum


def test_one_update_after_the_other_is_taken_and_then_the_nearest_to_the_median() -> (
    None
):
    points = ([0.0], [1.0], [3.0], [4.0], [5.0], [6.0], [900.0])

    # krum takes 4, 3, 1, 5 and 0, whose median is 3; 1 is as near to it as 5
    assert vector(Bulyan(), *points).tolist() == [(1 + 3 + 4) / 3]


@few
@given(SEEDS)
def test_a_lie_in_one_element_that_krum_does_not_see_is_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    honest = [rng.normal(size=1000) for _ in range(10)]
    lie = np.mean(honest, axis=0)  # nearer to all of them than they are to each other
    lie[0] = 20.0

    found = vector(Bulyan(), lie, *honest)

    assert vector(Krum(), lie, *honest)[0] == 20
    assert vector(MultiKrum(), lie, *honest)[0] > max(one[0] for one in honest) / 2
    assert found[0] <= max(one[0] for one in honest)


@few
@given(SEEDS)
def test_each_element_is_between_those_of_the_honest_sites(seed: int) -> None:
    honest = honest_sites(seed, 9)
    hostile = [1e30 * honest[0], -1e9 * honest[1]]

    found = vector(Bulyan(hostile=2), *hostile, *honest)

    assert (np.min(honest, axis=0) <= found).all()
    assert (found <= np.max(honest, axis=0)).all()
