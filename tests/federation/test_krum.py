"""Aggregations that take the updates which have the most others near them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from combined import SEEDS, combined, few, honest_sites, vector
from flare_core.federation import (
    Krum,
    Mean,
    MultiKrum,
)


def test_krum_takes_the_update_with_the_nearest_others() -> None:
    points = ([0.0], [1.0], [1.5], [2.1], [9.0])

    # two nearest: 1 + 2.25, 1 + .25, .25 + .36, .36 + 1.21, 47.61 + 56.25
    assert vector(Krum(), *points).tolist() == [1.5]
    assert vector(MultiKrum(chosen=2), *points).tolist() == [1.25]
    assert vector(MultiKrum(), *points).tolist() == [(0 + 1 + 1.5 + 2.1) / 4]


def test_of_updates_with_equal_scores_krum_takes_the_first_by_site() -> None:
    assert vector(Krum(), [5.0], [1.0], [1.0], [1.0], [1.0], [5.0]).tolist() == [1]
    assert vector(Krum(), [0.0], [1.0], [2.0], [3.0], [4.0], [5.0]).tolist() == [1]


@few
@given(SEEDS, st.integers(5, 9))
def test_multi_krum_of_all_is_the_mean_bit_for_bit(seed: int, num_sites: int) -> None:
    updates = [({"w": one}, 1) for one in honest_sites(seed, num_sites)]

    all_of_them = combined(MultiKrum(chosen=num_sites), *updates)

    assert all_of_them["w"].tobytes() == combined(Mean(), *updates)["w"].tobytes()


@few
@given(SEEDS, st.sampled_from([1.0, 1e3, 1e30]))
def test_krum_picks_an_honest_site_among_as_few_as_it_may_have(
    seed: int, far: float
) -> None:
    honest = honest_sites(seed, 5)
    alike = honest[0] + far * np.sign(honest[1]) * 20
    updates = [alike, *honest, alike]  # two that agree with each other

    picked = vector(Krum(hostile=2), *updates)

    assert any(picked.tobytes() == one.tobytes() for one in honest)
