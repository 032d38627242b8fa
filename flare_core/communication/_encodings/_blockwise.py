r"""The delta in few bits: multiples of a step that each block of elements chooses.

A block is scaled by its largest magnitude (absmax quantization: Dettmers et al., ICLR
2022, section 2, https://arxiv.org/abs/2110.02861), here with equal steps and without an
offset, so that zero stays zero.  With `most` steps to the largest magnitude m the
error is at most m / (2 most), to within the rounding of float32.

A part is written as the blocks' magnitudes, in the type of the delta, then the codes.
A block with a NaN or an infinity has the magnitude NaN, and is NaN when it is read.
"""

from typing import final

import numpy as np

from flare_core._model import Array
from flare_core.communication._encodings._record import Record, RecordError
from flare_core.communication._encodings._room import Room

_CODES = np.dtype(np.int8)
_PAIRS = np.dtype(np.uint8)


@final
class Int8:
    """One byte per element, from -127 to 127, and a magnitude per 4,096."""

    _BLOCK = 4_096
    _MOST = 127

    def encode(self, delta: Array, room: Room, /) -> bytes:
        """Return the magnitudes and a byte per element."""
        codes = room.take("codes", len(delta), _CODES)
        largest = _quantized(delta, codes, block=self._BLOCK, most=self._MOST)
        return largest.tobytes() + codes.tobytes()

    def decode(self, record: Record, delta: Array, /) -> None:
        """Fill in codes times steps."""
        largest = _magnitudes(record, delta, self._BLOCK)
        codes = record.take(_CODES, len(delta))
        if codes.min() < -self._MOST:
            msg = f"expected codes of -{self._MOST} to {self._MOST}, got {codes.min()}"
            raise RecordError(msg)
        delta[...] = codes
        _scale(delta, largest / delta.dtype.type(self._MOST), self._BLOCK)


@final
class Int4:
    """Half a byte per element, from -7 to 7, and a magnitude per 128.

    Elements of the first half of a part are in the lower bits, those of the second
    half in the upper ones, as code + 8.
    """

    _BLOCK = 128
    _MOST = 7
    _OFFSET = 8

    def encode(self, delta: Array, room: Room, /) -> bytes:
        """Return the magnitudes and a byte per two elements."""
        half = (len(delta) + 1) // 2
        codes = room.take("codes", 2 * half, _CODES)
        codes[-1] = 0  # pads an odd number
        shape = codes[: len(delta)]
        largest = _quantized(delta, shape, block=self._BLOCK, most=self._MOST)
        codes += _CODES.type(self._OFFSET)
        pairs = codes.view(_PAIRS)
        pairs[half:] <<= _PAIRS.type(4)
        return largest.tobytes() + (pairs[:half] | pairs[half:]).tobytes()

    def decode(self, record: Record, delta: Array, /) -> None:
        """Fill in codes times steps."""
        largest = _magnitudes(record, delta, self._BLOCK)
        half = (len(delta) + 1) // 2
        pairs = record.take(_PAIRS, half)
        lower, upper = pairs & _PAIRS.type(0x0F), pairs >> _PAIRS.type(4)
        if not (lower.all() and upper.all()):
            msg = f"expected codes of -{self._MOST} to {self._MOST}, got -8"
            raise RecordError(msg)
        delta[:half] = lower
        delta[half:] = upper[: len(delta) - half]
        delta -= delta.dtype.type(self._OFFSET)
        _scale(delta, largest / delta.dtype.type(self._MOST), self._BLOCK)


def _quantized(delta: Array, codes: Array, *, block: int, most: int) -> Array:
    """Fill in the codes of a delta, which is overwritten; return the magnitudes."""
    largest = _largest(delta, block)
    broken = ~np.isfinite(largest)
    _divide(delta, np.where(broken | (largest == 0), np.inf, largest), block)
    delta *= delta.dtype.type(most)
    np.rint(delta, out=delta)
    if broken.any():
        largest[broken] = np.nan
        delta[np.isnan(delta)] = 0
    codes[...] = delta
    return largest


def _largest(delta: Array, block: int) -> Array:
    whole, rest = _in_blocks(delta, block)
    found = np.abs(np.maximum(whole.max(axis=1), -whole.min(axis=1)))
    return np.append(found, np.abs(rest).max()) if len(rest) else found


def _divide(delta: Array, divisors: Array, block: int) -> None:
    whole, rest = _in_blocks(delta, block)
    divisors = divisors.astype(delta.dtype)
    whole /= divisors[: len(whole), np.newaxis]
    rest /= divisors[-1]


def _scale(delta: Array, steps: Array, block: int) -> None:
    whole, rest = _in_blocks(delta, block)
    whole *= steps[: len(whole), np.newaxis]
    rest *= steps[-1]


def _in_blocks(delta: Array, block: int) -> tuple[Array, Array]:
    """Return the whole blocks as rows, and the elements of the last, shorter one."""
    end = len(delta) // block * block
    return delta[:end].reshape(-1, block), delta[end:]


def _magnitudes(record: Record, delta: Array, block: int) -> Array:
    largest = record.take(delta.dtype, -(-len(delta) // block))
    if np.signbit(largest[~np.isnan(largest)]).any():
        msg = f"expected magnitudes of 0 or more, got {np.nanmin(largest)}"
        raise RecordError(msg)
    return largest
