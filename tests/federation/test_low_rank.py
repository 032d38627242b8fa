"""LoRA factors combined as products: exact, best of their rank, and the same bits."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare_core.federation import Factors, factor_mean, padded_mean, product_mean

_Matrix = npt.NDArray[np.float64]


def _drifted(
    num_sites: int, drift: float, *, size: int = 512, rank: int = 8, seed: int = 0
) -> list[Factors]:
    """Return sites' factors, each a step away from common ones in any direction."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> _Matrix:
        return random.standard_normal(shape) / math.sqrt(size)

    b, a = normal(size, rank), normal(rank, size)
    return [
        Factors(b + drift * normal(size, rank), a + drift * normal(rank, size))
        for _ in range(num_sites)
    ]


def _mean(updates: Sequence[Factors], weights: Sequence[float]) -> _Matrix:
    products = [one.b @ one.a for one in updates]
    return np.average(products, axis=0, weights=weights)


def _averaged(updates: Sequence[Factors], weights: Sequence[float]) -> _Matrix:
    b = np.average([one.b for one in updates], axis=0, weights=weights)
    a = np.average([one.a for one in updates], axis=0, weights=weights)
    return np.asarray(b @ a)


def _norm(matrix: _Matrix) -> float:
    return float(np.linalg.norm(matrix))


@pytest.mark.parametrize(
    ("num_sites", "drift", "expected"),
    [
        (3, 0.01, 4.75e-5),
        (3, 0.1, 4.72e-3),
        (3, 0.5, 1.10e-1),
        (3, 1.0, 3.33e-1),
        (10, 0.1, 2.89e-3),
        (10, 1.0, 2.68e-1),
        (50, 0.1, 1.43e-3),
    ],
)
def test_averaging_the_factors_errs_by_the_square_of_their_drift(
    num_sites: int, drift: float, expected: float
) -> None:
    updates = _drifted(num_sites, drift)

    _, losses = product_mean(updates, [1.0] * num_sites)

    error = math.sqrt(losses.averaging / losses.energy)
    assert error == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("num_sites", [3, 10])
def test_what_averaging_lacks_has_the_rank_of_all_sites_but_one(num_sites: int) -> None:
    updates, weights = _drifted(num_sites, 0.5, size=128), [1.0] * num_sites

    error = _mean(updates, weights) - _averaged(updates, weights)

    assert np.linalg.matrix_rank(error, rtol=1e-9) == (num_sites - 1) * 8
    _, losses = product_mean(updates, weights)
    assert losses.averaging == pytest.approx(_norm(error) ** 2, rel=1e-9)


def test_the_factors_are_the_nearest_of_their_rank() -> None:
    updates, weights = _drifted(4, 0.5, size=96, rank=6), [1.0, 2.0, 3.0, 10.0]
    mean = _mean(updates, weights)
    values = np.linalg.svd(mean, compute_uv=False)

    factors, losses = product_mean(updates, weights)

    bound = float(np.sqrt(np.sum(values[6:] ** 2)))
    assert _norm(mean - factors.b @ factors.a) == pytest.approx(bound, rel=1e-12)
    assert losses.made == pytest.approx(bound**2, rel=1e-12)
    assert losses.energy == pytest.approx(_norm(mean) ** 2, rel=1e-12)
    assert bound < _norm(mean - _averaged(updates, weights))


def test_what_rounding_leaves_of_rows_in_use_is_not_there_to_learn_with() -> None:
    rng = np.random.default_rng(0)
    b, a = np.zeros((64, 40)), np.zeros((40, 64))
    b[:, :8], a[:8] = rng.standard_normal((64, 8)), rng.standard_normal((8, 64))

    factors, losses = product_mean([Factors(b, a)], [1.0], "balanced")

    assert losses.made == pytest.approx(0, abs=1e-20)
    assert not factors.a[8:].any()


def test_the_last_ranks_can_be_left_free() -> None:
    updates, weights = _drifted(4, 0.5, size=96, rank=6), [1.0, 2.0, 3.0, 10.0]
    mean = _mean(updates, weights)
    values = np.linalg.svd(mean, compute_uv=False)

    factors, losses = product_mean(updates, weights, "balanced", free=2)

    assert not factors.b[:, 4:].any()
    assert not factors.a[4:].any()
    bound = float(np.sqrt(np.sum(values[4:] ** 2)))
    assert _norm(mean - factors.b @ factors.a) == pytest.approx(bound, rel=1e-12)
    assert losses.made == pytest.approx(bound**2, rel=1e-12)


def test_both_factors_have_the_same_lengths_and_directions_apart() -> None:
    factors, _ = product_mean(_drifted(3, 0.5, size=64), [1.0, 1.0, 1.0])

    np.testing.assert_allclose(
        factors.b.T @ factors.b, factors.a @ factors.a.T, atol=1e-12
    )
    assert np.all(np.diff(np.linalg.norm(factors.a, axis=1)) < 0)


def test_one_site_keeps_its_factors() -> None:
    (update,) = _drifted(1, 0.5, size=16)

    factors, losses = product_mean([update], [3.0])

    assert factors is update
    assert (losses.made, losses.averaging) == (0, 0)
    assert losses.energy == pytest.approx(_norm(update.b @ update.a) ** 2, rel=1e-12)


@given(
    num_sites=st.integers(2, 5), rank=st.integers(1, 6), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=30)
def test_sites_with_the_same_product_agree_on_it_whatever_their_factors(
    num_sites: int, rank: int, seed: int
) -> None:
    ((update),) = _drifted(1, 0.5, size=12, rank=rank, seed=seed)
    turns = np.random.default_rng(seed).standard_normal((num_sites, rank, rank))
    gauges = [np.linalg.qr(turn)[0] for turn in turns]
    updates = [Factors(update.b @ gauge, gauge.T @ update.a) for gauge in gauges]

    factors, losses = product_mean(updates, [1.0] * num_sites)

    wanted = update.b @ update.a
    np.testing.assert_allclose(factors.b @ factors.a, wanted, atol=1e-12)
    assert losses.made < 1e-24 * losses.energy


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_sign_of_each_direction_is_not_left_to_chance(seed: int) -> None:
    factors, _ = product_mean(_drifted(2, 0.5, size=16, seed=seed), [1.0, 2.0])

    for row in factors.a:
        assert row[np.abs(row).argmax()] > 0


def test_a_module_that_learnt_nothing_can_still_learn() -> None:
    updates = [Factors(np.zeros_like(one.b), one.a) for one in _drifted(3, 0.5, size=9)]

    factors, losses = product_mean(updates, [1.0, 1.0, 1.0])

    assert losses.energy == 0
    assert not factors.b.any()
    mean = np.mean([one.a for one in updates], axis=0)
    np.testing.assert_allclose(factors.a.T @ factors.a, mean.T @ mean, atol=1e-12)


def test_directions_that_no_site_uses_can_still_be_learnt() -> None:
    updates = _drifted(2, 0.5, size=9, rank=4)
    for one in updates:
        one.b[:, 1:] = 0  # a product of rank 1 each

    factors, _ = product_mean(updates, [1.0, 1.0])

    mean = _mean(updates, [1.0, 1.0])
    np.testing.assert_allclose(factors.b @ factors.a, mean, atol=1e-12)
    assert np.linalg.matrix_rank(factors.b) == 2
    assert np.linalg.matrix_rank(factors.a) == 4


def test_weights_of_nothing_count_for_nothing() -> None:
    one, other, third = _drifted(3, 0.5, size=12)

    for combine in (product_mean, factor_mean, padded_mean):
        factors, losses = combine([one, other, third], [1.0, 0.0, 2.0])
        expected, same_losses = combine([one, third], [1.0, 2.0])

        np.testing.assert_array_equal(factors.b, expected.b)
        np.testing.assert_array_equal(factors.a, expected.a)
        assert losses == same_losses


def test_factors_that_are_averaged_lose_what_averaging_loses() -> None:
    updates, weights = _drifted(3, 0.5, size=12), [1.0, 2.0, 4.0]

    factors, losses = factor_mean(updates, weights)

    averaged = _averaged(updates, weights)
    np.testing.assert_allclose(factors.b @ factors.a, averaged, atol=1e-14)
    assert losses.made == losses.averaging
    lost = _norm(_mean(updates, weights) - averaged) ** 2
    assert losses.made == pytest.approx(lost, rel=1e-9)


def test_padded_factors_count_for_what_they_have_learnt() -> None:
    updates, weights = _drifted(3, 0.5, size=12), [1.0, 2.0, 4.0]
    updates[0].b[:] = 0
    lengths = [_norm(one.b @ one.a) for one in updates]

    factors, losses = padded_mean(updates, weights)

    assert lengths[0] == 0
    expected = _averaged(updates, lengths)
    np.testing.assert_allclose(factors.b @ factors.a, expected, atol=1e-14)
    lost = _norm(_mean(updates, weights) - expected) ** 2
    assert losses.made == pytest.approx(lost, rel=1e-9)


def test_padded_factors_that_have_learnt_nothing_are_averaged() -> None:
    updates = [Factors(np.zeros_like(one.b), one.a) for one in _drifted(2, 0.5, size=9)]

    factors, _ = padded_mean(updates, [1.0, 3.0])

    expected = (updates[0].a + 3 * updates[1].a) / 4
    np.testing.assert_allclose(factors.a, expected, atol=1e-14)


def test_fedsvd_keeps_the_product_and_makes_the_rows_of_a_orthonormal() -> None:
    update, other = _drifted(2, 0.5, size=12, rank=4)
    updates = [update, Factors(other.b, update.a)]  # as A is not trained

    factors, losses = product_mean(updates, [1.0, 2.0], "orthonormal")

    mean = _mean(updates, [1.0, 2.0])
    np.testing.assert_allclose(factors.b @ factors.a, mean, atol=1e-14)
    np.testing.assert_allclose(factors.a @ factors.a.T, np.eye(4), atol=1e-14)
    assert losses.made < 1e-24 * losses.energy


def test_fedsvd_keeps_rows_to_learn_with_where_nothing_was_learnt() -> None:
    updates = [Factors(np.zeros_like(one.b), one.a) for one in _drifted(1, 0.5, size=9)]

    factors, _ = product_mean(updates, [1.0], "orthonormal")

    assert not factors.b.any()
    np.testing.assert_allclose(factors.a @ factors.a.T, np.eye(8), atol=1e-14)
