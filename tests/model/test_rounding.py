import functools
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn import from_bits
from flare_core import DTYPES
from flare_core._model import Array, bits_of, rounded_once

SMALL = [code for code in DTYPES if code[0] == "F" and bits_of(code) <= 8]
SIXTEEN = ["F16", "BF16"]
_FIRST = {code: int(code == "F8_E8M0") for code in DTYPES}
"""The first value to look at: in F8_E8M0 ml_dtypes 0.6 is wrong below 2**-126."""


@functools.cache
def _all_finite_values(code: str) -> Array:
    """Every finite value of a type, ascending, in float64; zero once, as +0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signalling NaNs
        wide = _every_pattern(code).astype(np.float64)
    return np.unique(wide[np.isfinite(wide)])


def _every_pattern(code: str) -> Array:
    bits = bits_of(code)
    dtype = np.uint8 if bits <= 8 else np.uint16
    return from_bits(code, (2**bits,), np.arange(2**bits, dtype=dtype).tobytes())


def _pattern(code: str, value: float) -> int:
    """Return the bit pattern of a value, without its sign."""
    unsigned = np.uint8 if bits_of(code) <= 8 else np.uint16
    return int(np.asarray([value], DTYPES[code]).view(unsigned)[0])


def _nearest_even(code: str, values: Array, exact: float) -> float:
    """Return the neighbour of a number by exact comparison; of two, the even one."""
    after = int(np.searchsorted(values, exact))
    if after < len(values) and values[after] == exact:
        return exact
    low, high = float(values[after - 1]), float(values[after])
    below, above = Fraction(exact) - Fraction(low), Fraction(high) - Fraction(exact)
    if below != above:
        return low if below < above else high
    if code == "F8_E8M0":
        return high  # nothing but powers of two: ml_dtypes takes the upper one
    return low if _pattern(code, low) % 2 == 0 else high


def _rounded(code: str, exact: float) -> float:
    return float(rounded_once(np.asarray(exact), DTYPES[code]).astype(np.float64))


@pytest.mark.parametrize("code", [*SMALL, *SIXTEEN])
def test_every_value_of_a_type_rounds_to_itself(code: str) -> None:
    values = _all_finite_values(code)

    rounded = rounded_once(values, DTYPES[code])

    np.testing.assert_array_equal(rounded.astype(np.float64), values)


@pytest.mark.parametrize("code", SMALL)
def test_halfway_and_a_hair_beside_it_round_to_the_right_neighbour(code: str) -> None:
    values = _all_finite_values(code)[_FIRST[code] :]
    halves = (values[:-1] + values[1:]) / 2
    for exact in (halves, np.nextafter(halves, -np.inf), np.nextafter(halves, np.inf)):
        expected = [_nearest_even(code, values, float(x)) for x in exact]

        rounded = rounded_once(exact, DTYPES[code]).astype(np.float64)

        np.testing.assert_array_equal(rounded, expected)


@pytest.mark.parametrize("code", SIXTEEN)
def test_all_halves_between_sixteen_bit_values_go_to_the_even_one(code: str) -> None:
    values = _all_finite_values(code)
    low, high = values[:-1], values[1:]
    halves = low + (high - low) / 2
    unsigned = low.astype(DTYPES[code]).view(np.uint16)
    even = np.where(unsigned % 2 == 0, low, high)
    for exact, expected in (
        (halves, even),
        (np.nextafter(halves, -np.inf), low),
        (np.nextafter(halves, np.inf), high),
    ):
        rounded = rounded_once(exact, DTYPES[code]).astype(np.float64)

        np.testing.assert_array_equal(rounded, expected)


@given(st.sampled_from([*SMALL, *SIXTEEN]), st.data())
def test_any_number_goes_to_the_nearest_even_neighbour(
    code: str, data: st.DataObject
) -> None:
    values = _all_finite_values(code)[_FIRST[code] :]
    exact = data.draw(st.floats(float(values[0]), float(values[-1])))

    assert _rounded(code, exact) == _nearest_even(code, values, exact)


def test_a_number_is_not_rounded_twice_on_its_way_to_bfloat16() -> None:
    exact = np.asarray([1 + 2**-8 + 2**-40])

    rounded = rounded_once(exact, DTYPES["BF16"])

    assert float(rounded[0]) == 1 + 2**-7
    assert float(exact.astype(DTYPES["BF16"])[0]) == 1  # why it needs our own hand


@pytest.mark.parametrize("exact", [5e-324, -5e-324, 1e-46, -1e-46])
def test_what_is_too_small_becomes_zero_of_its_sign(exact: float) -> None:
    rounded = rounded_once(np.asarray([exact]), DTYPES["BF16"])

    assert float(rounded[0]) == 0
    assert np.signbit(rounded.astype(np.float64)[0]) == np.signbit(exact)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_takes_the_nearest(exact: float) -> None:
    beside = np.nextafter(exact, 0)

    rounded = rounded_once(np.asarray([exact, beside]), DTYPES["F32"])

    assert rounded.tolist() == [exact, float(np.float32(beside))]


def test_complex_numbers_are_rounded_in_both_parts() -> None:
    exact = np.asarray([0.1 + 0.2j, 1 + (1 + 2**-40) * 1j])

    rounded = rounded_once(exact, DTYPES["C64"])

    assert rounded.tolist() == exact.astype(np.complex64).tolist()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3)])
@pytest.mark.parametrize("code", ["F32", "BF16", "F8_E4M3"])
def test_the_shape_stays(code: str, shape: tuple[int, ...]) -> None:
    assert rounded_once(np.ones(shape), DTYPES[code]).shape == shape
