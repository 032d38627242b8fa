"""What an encoding is to those who read and write files."""

from typing import Protocol

from flare_core._model import Array


class Codec(Protocol):
    """Turns blocks of values into records and back, given the base at both ends."""

    @property
    def error(self) -> float:
        """The relative L2 error of all that was encoded so far."""
        ...

    def encode(self, values: Array, base: Array, /) -> bytes:
        """Return the record of a block.

        Args:
            values: What to send: at most `BLOCK` elements along one axis.
            base: What both sides hold, with the same type and length.
        """
        ...

    def decode(self, record: memoryview, base: Array, /) -> Array:
        """Return the values that a record says, in the type of the base.

        Raises:
            RecordError: If it is no record of as many elements.
        """
        ...
