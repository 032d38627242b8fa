"""Reads the record of a block, which a peer may have made up."""

from typing import Any, final

import numpy as np

from flare_core._model import Array


class RecordError(Exception):
    """A record that means nothing; whoever knows the tensor's name adds it."""


@final
class Record:
    """The bytes of a record, taken from the front as arrays that are views of them."""

    def __init__(self, raw: memoryview) -> None:
        self._rest = raw

    def take(self, dtype: np.dtype[Any], count: int) -> Array:
        """Return the next elements.

        Raises:
            RecordError: If there are less.
        """
        size = count * dtype.itemsize
        if len(self._rest) < size:
            msg = f"expected {size} more bytes in the record, got {len(self._rest)}"
            raise RecordError(msg)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return np.frombuffer(taken, np.uint8).view(dtype)

    def end(self) -> None:
        """Check that nothing follows.

        Raises:
            RecordError: If something does.
        """
        if len(self._rest):
            msg = f"expected the end of the record, got {len(self._rest)} bytes more"
            raise RecordError(msg)
