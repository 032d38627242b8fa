"""Aggregations that look at the order of the values of each element."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from combined import SEEDS, combined, few, honest_sites, vector
from flare_core import Aggregation
from flare_core.federation import (
    Mean,
    Median,
    TrimmedMean,
)


def test_the_median_is_the_value_in_the_middle() -> None:
    assert vector(Median(), [1, 9], [5, 2], [3, 1e9]).tolist() == [3, 9]
    assert vector(Median(), [1], [9], [2], [-7]).tolist() == [1.5]


@pytest.mark.parametrize("rule", [Median(), TrimmedMean()], ids=str)
def test_zeros_of_both_signs_make_the_same_bits_in_any_order(rule: Aggregation) -> None:
    zeros = ([-0.0], [0.0], [-0.0])

    found = {vector(rule, *order).tobytes() for order in itertools.permutations(zeros)}

    assert len(found) == 1


def test_the_trimmed_mean_is_that_of_the_values_between() -> None:
    values = ([1.0], [9.0], [2.0], [-1e9], [5.0])

    assert vector(TrimmedMean(), *values).tolist() == [8 / 3]
    assert vector(TrimmedMean(hostile=2), *values).tolist() == [2]


@pytest.mark.parametrize(
    ("rule", "num_hostile"),
    [(Median(), 3), (TrimmedMean(hostile=3), 3), (TrimmedMean(hostile=1), 1)],
    ids=str,
)
@few
@given(seed=SEEDS, far=st.sampled_from([-1e30, 1e9]))
def test_each_element_is_between_those_of_the_honest_sites(
    rule: Aggregation, num_hostile: int, seed: int, far: float
) -> None:
    honest = honest_sites(seed, 7 - num_hostile)
    rng = np.random.default_rng(seed)
    hostile = [far * rng.normal(size=50) for _ in range(num_hostile)]

    found = vector(rule, *hostile, *honest)

    assert (np.min(honest, axis=0) <= found).all()
    assert (found <= np.max(honest, axis=0)).all()
    assert np.linalg.norm(vector(Mean(), *hostile, *honest)) > 1e6


def test_a_median_of_complex_numbers_is_that_of_both_parts() -> None:
    values = np.asarray([[1 + 9j], [2 + 1j], [7 + 3j]], np.complex64)

    found = combined(Median(), *(({"z": one}, 1) for one in values))

    assert found["z"].tolist() == [2 + 3j]
