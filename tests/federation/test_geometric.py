"""The geometric median."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from combined import combined, few, honest_sites, vector
from flare_core import Contribution
from flare_core.federation import (
    Cohort,
    GeometricMedian,
)


def _cohort(*points: npt.ArrayLike, num_examples: Sequence[int] = ()) -> Cohort:
    steps = np.asarray(points, np.float64)
    said = [
        Contribution(site=str(at), num_examples=n)
        for at, n in enumerate(num_examples or [1] * len(steps))
    ]
    return Cohort(updates=said, products=steps @ steps.T)


@pytest.mark.parametrize("examples", [(1, 1, 1, 1, 1), (3, 1, 7, 2, 9)])
def test_the_unit_vectors_from_the_geometric_median_add_up_to_nothing(
    examples: tuple[int, ...],
) -> None:
    points = np.stack(honest_sites(3, 5))
    cohort = _cohort(*points, num_examples=examples)

    shares = GeometricMedian(by_examples=True).share(cohort)

    steps = points - np.asarray(shares.updates) @ points
    units = steps / np.linalg.norm(steps, axis=1)[:, None]
    assert np.linalg.norm(np.asarray(examples) @ units) < 1e-13 * sum(examples)


@few
@given(
    others=st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from([-1, 1]), st.integers(1, 9)),
        min_size=2,
        max_size=8,
    ),
    heaviest=st.integers(-50, 50),
    more=st.integers(1, 9),
)
def test_in_one_dimension_it_is_the_weighted_median(
    others: list[tuple[int, int, int]], heaviest: int, more: int
) -> None:
    most = sum(n for _, _, n in others) + more
    pairs = [(heaviest, most)]
    pairs += [(heaviest + side * distance, n) for distance, side, n in others]
    rule = GeometricMedian(by_examples=True)

    found = combined(rule, *(({"w": np.float64(at)}, n) for at, n in pairs))

    assert found["w"] == pytest.approx(heaviest, abs=1e-4)


def test_less_than_half_of_the_sites_cannot_outvote_the_others() -> None:
    far = np.asarray([1e12, -1e12])

    found = vector(GeometricMedian(), [1, 2], far, [1.1, 2], [0.9, 2], far)

    np.testing.assert_allclose(found, [1, 2], atol=0.5)
