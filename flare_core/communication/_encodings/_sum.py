"""Base and delta, rounded once to the type of the base: the same bits at both ends."""

import numpy as np

from flare_core._model import Array
from flare_core.communication._encodings._room import Room

_SINGLE = np.dtype(np.float32)


def put_sum(base: Array, delta: Array, values: Array, room: Room) -> None:
    """Fill in base plus delta.

    Args:
        base: F64 and a float64 delta, or F32, F16 or BF16 and a float32 delta.
        delta: What is added.
        values: Takes the sum, in the type of the base.
        room: For what is between.
    """
    if base.dtype == delta.dtype:
        np.add(base, delta, out=values)
        unify_nans(values)
    else:
        values[...] = _to_odd_sum(base, delta, room)


def unify_nans(array: Array) -> None:
    """Give all NaNs the bits of ``np.nan``.

    Which ones come out of arithmetic depends on the processor.
    """
    wrong = np.isnan(array)
    if wrong.any():
        array[wrong] = np.nan


def _to_odd_sum(base: Array, delta: Array, room: Room) -> Array:
    """Return the sum in float32, rounded to odd.

    To round it again, to nearest in a type with two bits less or narrower, is to round
    the exact sum once (Boldo and Melquiond, IEEE Trans. Computers 57(4), 2008, theorem
    3).  What `rounded_once` does takes ten times longer.
    """
    wide = room.take("wide", len(base), _SINGLE)
    total = room.take("total", len(base), _SINGLE)
    wide[...] = base
    np.add(wide, delta, out=total)
    unify_nans(total)
    error = _error(wide, delta, total, room)
    below = error < 0
    inexact = (error > 0) | below
    if inexact.any():
        bits = total.view(np.uint32)
        bits -= inexact & (below != np.signbit(total))  # toward zero
        bits |= inexact
    return total


def _error(wide: Array, delta: Array, total: Array, room: Room) -> Array:
    """Return exactly what a rounded sum is short of; it overwrites the first term.

    Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
    """
    rounded_delta = np.subtract(
        total, wide, out=room.take("rounded", len(wide), _SINGLE)
    )
    error = np.subtract(
        delta, rounded_delta, out=room.take("error", len(wide), _SINGLE)
    )
    rounded_wide = np.subtract(total, rounded_delta, out=rounded_delta)
    wide -= rounded_wide
    error += wide
    return error
