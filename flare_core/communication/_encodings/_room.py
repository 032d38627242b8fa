"""Memory that is used again for each part of a model."""

from typing import Any, final

import numpy as np

from flare_core._model import Array
from flare_core.communication._encodings._grid import PART


@final
class Room:
    """Arrays for the intermediate results of a part, each under a name of its own.

    Fresh arrays of this size are fresh pages of the kernel's, whose faults take longer
    than what is computed: int8 runs at a quarter of its speed.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype[Any]], Array] = {}

    def take(self, name: str, count: int, dtype: np.dtype[Any]) -> Array:
        """Return an array with any content, the same memory for the same name."""
        key = name, dtype
        if key not in self._arrays:
            self._arrays[key] = np.empty(PART, dtype)
        return self._arrays[key][:count]
