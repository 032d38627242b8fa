"""Files that hold what is too large for memory: received, mapped, or only lent."""

import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast, final

import numpy as np
import xxhash

from flare_core._errors import ConfigurationError
from flare_core._model import ModelState
from flare_core.communication._safetensors import Frame
from flare_core.communication._streams import CHUNK_BYTES

_MOST_FRAMES = 512
"""Below what a system call takes at once."""
_POPULATE: int = getattr(mmap, "MAP_POPULATE", 0)


@final
class ReceivedFile:
    """A file that is filled in any order; its room is taken before the first byte.

    Args:
        path: Where; a file of the same size is written over, which takes half the
            time that a new one would.  One of another size, or one that is kept under
            another name too, is replaced: who has mapped it keeps it.
        num_bytes: Its size.

    Raises:
        ConfigurationError: If there is no room for it.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path
        try:
            if path.exists() and _is_of_no_use(path.stat(), num_bytes):
                path.unlink()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise _no_room(path, num_bytes, exc) from exc
        try:
            if os.fstat(self._fd).st_size != num_bytes:
                _reserve(self._fd, num_bytes)
        except OSError as exc:
            self.close()
            raise _no_room(path, num_bytes, exc) from exc

    def write(self, offset: int, frames: Sequence[Frame]) -> None:
        """Put frames at an offset.

        Raises:
            ConfigurationError: If the file system does not take them.
        """
        whole = [b"".join(frames)] if len(frames) > _MOST_FRAMES else frames
        size = sum(len(frame) for frame in whole)
        try:
            written = os.pwritev(self._fd, whole, offset)
            while written < size:  # as at the limit of a quota
                rest = b"".join(whole)[written:]
                written += os.pwrite(self._fd, rest, offset + written)
        except OSError as exc:
            raise _no_room(self.path, size, exc) from exc

    def close(self) -> None:
        """Close it; what is mapped stays so."""
        os.close(self._fd)


def write_file(path: Path, num_bytes: int, frames: Iterable[Frame]) -> bytes:
    """Do as `fill_file`, but to a new file, which appears when it is whole."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    digest = fill_file(unfinished, num_bytes, frames)
    unfinished.replace(path)
    return digest


def fill_file(path: Path, num_bytes: int, frames: Iterable[Frame]) -> bytes:
    """Write frames one after the other to a file; over the old one if it has that size.

    Args:
        path: The file.
        num_bytes: The length of all frames.
        frames: What to write.

    Returns:
        The XXH3-128 of the file.

    Raises:
        ConfigurationError: If there is no room for it.
    """
    digest = xxhash.xxh3_128()
    offset = 0
    with closing(ReceivedFile(path, num_bytes)) as file:
        for frame in frames:
            view = memoryview(frame).cast("B")
            for start in range(0, len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                file.write(offset + start, [piece])
                digest.update(piece)  # while it is in the cache
            offset += len(view)
    return digest.digest()


def mapped(path: Path, *, private: bool = False) -> memoryview:
    """Return the bytes of a file, to read; they are loaded as they are looked at.

    Args:
        path: The file.
        private: Whether who writes to them all the same changes a copy of his own,
            instead of being ended by the kernel.
    """
    access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=access)).toreadonly()


def let_go(weights: ModelState) -> None:
    """Take a mapped model out of this process's memory; a look brings it back."""
    for array in weights.values():
        lender = _lender(array)
        if isinstance(lender, mmap.mmap):
            lender.madvise(mmap.MADV_DONTNEED)
        return  # all are views of one file


def _lender(array: object) -> object:
    """Return whose memory an array looks at."""
    while isinstance(array, np.ndarray):
        array = cast("object", array.base)
    return cast("object", array.obj) if isinstance(array, memoryview) else array


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch(folder: Path, num_bytes: int) -> memoryview:
    """Return zeros to write to, of any size: a file nobody else sees, mapped.

    The kernel may move it out of memory, and takes it back when it is forgotten.

    Raises:
        ConfigurationError: If there is no room for it.
    """
    if not num_bytes:
        return memoryview(bytearray())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), num_bytes)
            flags = mmap.MAP_SHARED | _POPULATE
            return memoryview(mmap.mmap(file.fileno(), num_bytes, flags))
    except OSError as exc:
        raise _no_room(folder, num_bytes, exc) from exc


def _is_of_no_use(found: os.stat_result, num_bytes: int) -> bool:
    return found.st_size != num_bytes or found.st_nlink > 1


def _reserve(fd: int, num_bytes: int) -> None:
    """Take the room now: a full disk is told at once, and writing costs a third."""
    if num_bytes and hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(fd, 0, num_bytes)
    else:
        os.ftruncate(fd, num_bytes)


def _no_room(path: Path, num_bytes: int, error: OSError) -> ConfigurationError:
    msg = (
        f"cannot write {num_bytes:,} bytes to {path}: {error.strerror}; give the run a "
        "folder with room for the global model twice and for each site's update once"
    )
    return ConfigurationError(msg)
