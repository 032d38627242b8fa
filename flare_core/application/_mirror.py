"""Memory that global models are received into, used again when nobody looks at it."""

import mmap
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np

from flare_core.communication import Frame


@final
class Mirror:
    """Room for one stream.

    Args:
        memory: Where it goes.

    Attributes:
        file: The same, to read; whoever holds a view of it keeps it as it is.
    """

    def __init__(self, memory: memoryview, file: memoryview) -> None:
        self._memory = memory
        self.file = file

    def write(self, offset: int, frames: Sequence[Frame]) -> None:
        """Put frames at an offset."""
        for frame in frames:
            self._memory[offset : offset + len(frame)] = frame
            offset += len(frame)

    def write_all(self, frames: Iterable[Frame]) -> None:
        """Put frames one after the other, from the beginning."""
        offset = 0
        for frame in frames:
            self.write(offset, [frame])
            offset += len(frame)


@final
class Mirrors:
    """Lends memory that comes back by itself once its last view is forgotten.

    So a round on an unchanged layout allocates nothing, and yet a model that somebody
    still holds is never overwritten.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, num_bytes: int) -> Mirror:
        """Return room for a stream of so many bytes."""
        memory = self._found(num_bytes)
        lease = _Lease(memory, num_bytes)
        weakref.finalize(lease, self._free.append, memory).atexit = False
        view = np.asarray(lease)
        view.flags.writeable = False
        return Mirror(memoryview(memory)[:num_bytes], memoryview(view.data))

    def _found(self, num_bytes: int) -> mmap.mmap:
        fitting = [memory for memory in self._free if len(memory) >= num_bytes]
        if fitting:
            smallest = min(fitting, key=len)
            self._free.remove(smallest)
            return smallest
        self._free.clear()  # the layout has changed
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return mmap.mmap(-1, max(num_bytes, 1), flags)


@final
class _Lease:
    """What NumPy holds on to as long as an array looks at the memory."""

    def __init__(self, memory: mmap.mmap, num_bytes: int) -> None:
        self._array = np.frombuffer(memory, np.uint8, num_bytes)
        self.__array_interface__: dict[str, Any] = self._array.__array_interface__
