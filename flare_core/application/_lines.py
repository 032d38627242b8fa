"""Files of lines that several processes append to, and that a crash may tear."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

_BLOCK_BYTES = 1 << 13


@final
class Lines:
    """An open file of lines; nobody else appends to it meanwhile.

    Its methods raise OSError.

    Args:
        fd: The file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = self._after_newline(os.fstat(fd).st_size)

    def last(self) -> bytes:
        """Return the last whole line; empty if there is none."""
        start = self._after_newline(self._end - 1)
        return self._read(start, self._end - 1) if self._end else b""

    def torn(self) -> bytes:
        """Return what follows the last whole line: part of one, after a crash."""
        return self._read(self._end, os.fstat(self._fd).st_size)

    def cut(self) -> None:
        """Drop what follows the last whole line."""
        os.ftruncate(self._fd, self._end)

    def append(self, lines: bytes) -> None:
        """Write whole lines, or nothing."""
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
        except OSError:  # the disk may be full
            self.cut()
            raise
        self._end += written

    def sync(self) -> None:
        """Have it survive a loss of power."""
        os.fsync(self._fd)

    def _after_newline(self, stop: int) -> int:
        """Return where the line begins that goes on at an offset."""
        while stop > 0:
            start = max(0, stop - _BLOCK_BYTES)
            newline = os.pread(self._fd, stop - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            stop = start
        return 0

    def _read(self, start: int, stop: int) -> bytes:
        return os.pread(self._fd, stop - start, start)


@contextmanager
def appending(path: Path, *, mode: int = 0o666) -> Generator[Lines]:
    """Yield a file to append to; it and its folder are made if they do not exist.

    Other processes, and other threads, wait until it is closed.

    Args:
        path: The file.
        mode: Who may read and write a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield Lines(fd)
    finally:
        os.close(fd)
