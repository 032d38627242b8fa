"""The element types of safetensors, as NumPy types, and exact rounding to them."""

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "F4": np.dtype(ml_dtypes.float4_e2m1fn),
    "F6_E2M3": np.dtype(ml_dtypes.float6_e2m3fn),
    "F6_E3M2": np.dtype(ml_dtypes.float6_e3m2fn),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "C64": np.dtype(np.complex64),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
"""Code in a safetensors header → NumPy type of the array in memory."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BFLOAT16 = DTYPES["BF16"]
_EXPONENTS = {DTYPES["F16"]: np.uint16(0x7C00), DTYPES["BF16"]: np.uint16(0x7F80)}
"""Of types that ml_dtypes and NumPy look at slowly: the bits that are all set in a
number that is not finite."""
_BLOCK_ELEMENTS = 1 << 17


def code_of(dtype: np.dtype[Any]) -> str:
    """Return the safetensors code of a NumPy type.

    Raises:
        TypeError: If safetensors has no such type.
    """
    try:
        return _CODES[dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype]
    except KeyError:
        known = ", ".join(sorted(dtype.name for dtype in _CODES))
        msg = f"no tensor can travel as {dtype}; possible are {known}"
        raise TypeError(msg) from None


def bits_of(code: str) -> int:
    """Return the bits of one element on the wire; 4 and 6 where types are packed."""
    return _BITS.get(code, DTYPES[code].itemsize * 8)


def is_counter(dtype: np.dtype[Any]) -> bool:
    """Tell whether values of this type count something: integers and booleans."""
    return dtype.kind in "biu"


def all_finite(array: Array) -> bool:
    """Tell whether no element is infinite or not a number; allocates little."""
    if is_counter(array.dtype):
        return True
    flat = array.reshape(-1)
    blocks = range(0, flat.size, _BLOCK_ELEMENTS)
    return all(_finite(flat[start : start + _BLOCK_ELEMENTS]) for start in blocks)


def _finite(block: Array) -> bool:
    exponent = _EXPONENTS.get(block.dtype)
    if exponent is not None:
        return not bool((block.view(np.uint16) & exponent == exponent).any())
    small = block.dtype.itemsize < np.dtype(np.float32).itemsize
    return bool(np.isfinite(block.astype(np.float32) if small else block).all())


def squared_distance(one: Array, other: Array) -> float:
    """Return the squared L2 distance of two arrays; allocates little."""
    kind = accumulator_dtype(one.dtype)
    left, right = one.reshape(-1), other.reshape(-1)
    total = 0.0
    for start in range(0, left.size, _BLOCK_ELEMENTS):
        block = slice(start, start + _BLOCK_ELEMENTS)
        step = left[block].astype(kind) - right[block].astype(kind)
        total += float(np.vdot(step, step).real)
    return total


def accumulator_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which values of `dtype` are summed."""
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


def rounded_once(exact: Array, dtype: np.dtype[Any]) -> Array:
    """Round float64 or complex128 values to `dtype`, to nearest even, once.

    ml_dtypes 0.6 casts float64 by way of float32 and so rounds twice; here the first
    step rounds to odd, which makes the second one exact (Boldo and Melquiond, IEEE
    Trans. Computers 57(4), 2008, theorem 3).
    """
    if dtype.isbuiltin == 1:
        return exact.astype(dtype)
    odd = _to_odd_float32(exact)
    return _to_bfloat16(odd) if dtype == _BFLOAT16 else odd.astype(dtype)


def _to_odd_float32(exact: Array) -> Array:
    nearest = np.atleast_1d(exact.astype(np.float32))
    wide = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    bits -= np.abs(wide) > np.abs(exact)  # toward zero: sign and magnitude are apart
    bits |= wide != exact
    return nearest.reshape(exact.shape)


def _to_bfloat16(single: Array) -> Array:
    """Round to nearest, ties to even; ml_dtypes 0.6 takes five times longer."""
    bits = np.atleast_1d(single).view(np.uint32)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1))
    rounded = np.where(np.isnan(single), bits | 0x40_0000, rounded)  # stays quiet NaN
    half: Array = (rounded >> 16).astype(np.uint16).view(_BFLOAT16)
    return half.reshape(single.shape)


def shifted(array: Array, base: Array, to: Array, *, pace: float = 1.0) -> Array:
    """Return the step from `base` to `array`, taken from `to`; a counter stays.

    Args:
        array: Where the step leads.
        base: Where it begins.
        to: Where it is taken from instead; all three of one shape and dtype.
        pace: How much of it is taken.
    """
    if is_counter(array.dtype):
        return array
    kind = accumulator_dtype(array.dtype)
    step = array.astype(kind) - base.astype(kind)
    return rounded_once(to.astype(kind) + pace * step, array.dtype)
