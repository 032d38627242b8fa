"""The arithmetic of lossy encodings: what was added to the base travels.

Both sides add in the same way, with operations that IEEE 754 rounds correctly, so they
hold the same bits on every machine.
"""

import math
from typing import Any, Protocol, final

import numpy as np

from flare_core._model import Array
from flare_core.communication._encodings._grid import PART, spans
from flare_core.communication._encodings._record import Record
from flare_core.communication._encodings._room import Room
from flare_core.communication._encodings._sum import put_sum, unify_nans

_DOUBLE = np.dtype(np.float64)
_SINGLE = np.dtype(np.float32)


class Code(Protocol):
    """How a delta is written; it sees a part at a time."""

    def encode(self, delta: Array, room: Room, /) -> bytes:
        """Return the bytes for a float32 or float64 delta, which it may overwrite."""
        ...

    def decode(self, record: Record, delta: Array, /) -> None:
        """Fill in the delta that the next bytes of a record say.

        Raises:
            RecordError: If they say none.
        """
        ...


class Feedback(Protocol):
    """Keeps what could not be sent, to add it to the next update."""

    def carried(self, count: int, /) -> Array:
        """Return what earlier updates left of the next elements, in float64."""
        ...

    def leave(self, lost: Array, /) -> None:
        """Keep what this update leaves of them."""
        ...


@final
class Delta:
    """A codec for deltas.

    The delta is float64 for F64 and float32 for narrower types.

    Args:
        code: How a delta is written.
        feedback: What is added to the deltas, and takes what is lost of them.
    """

    def __init__(self, code: Code, feedback: Feedback | None = None) -> None:
        self._code = code
        self._feedback = feedback
        self._room = Room()
        self._lost = self._wanted = 0.0

    @property
    def error(self) -> float:
        """Norm of what was lost over that of what was to be sent; 0 if all arrived.

        NaN if something was not finite.
        """
        if self._lost == 0.0:
            return 0.0
        return math.sqrt(self._lost / self._wanted) if self._wanted else math.inf

    def encode(self, values: Array, base: Array, /) -> bytes:
        """Return the record of a block, and count what is lost."""
        with np.errstate(all="ignore"):
            parts = spans(len(base), PART)
            return b"".join(self._encode(values[part], base[part]) for part in parts)

    def decode(self, record: memoryview, base: Array, /) -> Array:
        """Return base and delta, rounded once.

        Raises:
            RecordError: If it is no record of as many elements.
        """
        fields = Record(record)
        values = np.empty(len(base), base.dtype)
        with np.errstate(all="ignore"):
            for part in spans(len(base), PART):
                self._decode(fields, base[part], values[part])
        fields.end()
        return values

    def _encode(self, values: Array, base: Array) -> bytes:
        held = self._room.take("held", len(base), _DOUBLE)
        held[...] = base
        wanted = self._difference("wanted", values, held)
        if self._feedback is not None:
            wanted += self._feedback.carried(len(wanted))
            unify_nans(wanted)
        delta = self._room.take("delta", len(base), _delta_dtype(base))
        delta[...] = wanted
        record = self._code.encode(delta, self._room)
        arrived = self._room.take("arrived", len(base), base.dtype)
        self._decode(Record(memoryview(record)), base, arrived)
        self._count(wanted, self._difference("received", arrived, held))
        return record

    def _decode(self, record: Record, base: Array, values: Array) -> None:
        delta = self._room.take("decoded", len(base), _delta_dtype(base))
        self._code.decode(record, delta)
        put_sum(base, delta, values, self._room)

    def _difference(self, name: str, values: Array, held: Array) -> Array:
        difference = self._room.take(name, len(held), _DOUBLE)
        difference[...] = values
        difference -= held
        unify_nans(difference)
        return difference

    def _count(self, wanted: Array, received: Array) -> None:
        lost = np.subtract(wanted, received, out=received)
        self._lost += _squares(lost)
        self._wanted += _squares(wanted)
        if self._feedback is not None:
            self._feedback.leave(lost)


def _delta_dtype(base: Array) -> np.dtype[Any]:
    return _DOUBLE if base.dtype == _DOUBLE else _SINGLE


def _squares(array: Array) -> float:
    """Return the sum of squares; by no BLAS, which may start threads for it."""
    return float(np.einsum("i,i", array, array))
