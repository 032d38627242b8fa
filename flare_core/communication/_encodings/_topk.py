"""The few largest elements of a delta; error feedback sends the others later.

Top-k sparsification with memory: Stich et al., NeurIPS 2018, algorithm 1,
https://arxiv.org/abs/1809.07599.  The k largest are taken of each part.

A part is written as its number of elements (u32), their indices in rising order (u16),
and their values in the type of the delta.
"""

import math
from typing import final

import numpy as np

from flare_core._model import Array
from flare_core.communication._encodings._record import Record, RecordError
from flare_core.communication._encodings._room import Room

_COUNT = np.dtype("<u4")
_INDEX = np.dtype("<u2")
_SINGLE_BITS = np.dtype(np.uint32)
_DOUBLE_BITS = np.dtype(np.uint64)


@final
class TopK:
    """Keeps the elements of largest magnitude; of equal ones, the first.

    Zeros are never sent.  NaN is larger than infinity, which is larger than the rest.

    Args:
        keep: The fraction to keep, more than 0 and at most 1; at least one element.

    Raises:
        ValueError: If it is no such fraction.
    """

    def __init__(self, keep: float) -> None:
        if not 0 < keep <= 1:
            msg = f"keep: expected a fraction above 0 and at most 1, got {keep}"
            raise ValueError(msg)
        self._keep = keep

    def encode(self, delta: Array, room: Room, /) -> bytes:
        """Return indices and values of the largest elements."""
        kept = _largest(delta, math.ceil(self._keep * len(delta)), room)
        count = np.asarray(len(kept), _COUNT)
        return count.tobytes() + kept.astype(_INDEX).tobytes() + delta[kept].tobytes()

    def decode(self, record: Record, delta: Array, /) -> None:
        """Fill in the values at the indices, and what adds nothing elsewhere."""
        count = int(record.take(_COUNT, 1)[0])
        if count > len(delta):
            msg = f"expected at most {len(delta)} elements in a part, got {count}"
            raise RecordError(msg)
        indices = record.take(_INDEX, count)
        values = record.take(delta.dtype, count)
        _check(indices, len(delta))
        delta[...] = -0.0  # unlike 0.0, it leaves a base of -0.0 as it is
        delta[indices] = values


def _largest(delta: Array, count: int, room: Room) -> Array:
    """Return the indices of the largest elements in rising order."""
    ranks = _ranks(delta, room)
    least = np.partition(ranks, len(ranks) - count)[len(ranks) - count]
    if least == 0:
        return np.flatnonzero(ranks)
    above = np.flatnonzero(ranks > least)
    equal = np.flatnonzero(ranks == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _ranks(delta: Array, room: Room) -> Array:
    """Return the bits without the sign: integers in the order of the magnitudes."""
    dtype = _SINGLE_BITS if delta.dtype == np.float32 else _DOUBLE_BITS
    ranks = room.take("ranks", len(delta), dtype)
    all_but_the_sign = dtype.type(np.iinfo(dtype).max >> 1)
    np.bitwise_and(delta.view(dtype), all_but_the_sign, out=ranks)
    return ranks


def _check(indices: Array, limit: int) -> None:
    if len(indices) and indices[-1] >= limit:
        msg = f"expected indices below {limit}, got {indices[-1]}"
        raise RecordError(msg)
    falls = np.flatnonzero(indices[1:] <= indices[:-1])
    if len(falls):
        before, after = indices[falls[0]], indices[falls[0] + 1]
        msg = f"expected indices in rising order, got {after} after {before}"
        raise RecordError(msg)
