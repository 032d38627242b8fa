"""A model on its way, as a stream of chunks that the receiver asks for.

Whoever must hold the bytes says which may come: the receiver grants ranges, never more
than a window ahead of what has arrived, and the sender sends no others.  After a break
it grants again from where it was.  Pure: no socket, no file.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, final

import xxhash

from flare_core._errors import ProtocolError
from flare_core.communication._safetensors import Frame

CHUNK_BYTES = 1 << 21
"""Larger ones fault in fresh memory, smaller ones cost wake-ups and Python."""
WINDOW = 8
"""Chunks that may be on their way; enough to keep a fast connection full."""
SHORT_BYTES = 1 << 14
"""A stream up to this size goes along with what announces it."""
_SMALL_BYTES = 1 << 14
"""Pieces below are joined: a copy costs less than a frame of its own."""
_MAX_ATTEMPTS = 3

Write: TypeAlias = Callable[[int, Sequence[Frame]], None]
"""Puts frames at an offset of what is received."""


@final
class Outgoing:
    """What is sent: pieces of memory that together are one stream.

    Args:
        pieces: In order; they are read until the stream has arrived, never copied
            whole.
    """

    def __init__(self, pieces: Sequence[Frame]) -> None:
        self._pieces = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._ends = list(itertools.accumulate(len(one) for one in self._pieces))

    @property
    def num_bytes(self) -> int:
        """The length of the stream."""
        return self._ends[-1] if self._ends else 0

    @property
    def short(self) -> bytes:
        """All bytes, if they are few enough to go along; else none."""
        return b"".join(self._pieces) if self.num_bytes <= SHORT_BYTES else b""

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, list[Frame]]]:
        """Yield the chunks of a range: where each begins, and its frames."""
        for offset in range(start, min(stop, self.num_bytes), CHUNK_BYTES):
            end = min(offset + CHUNK_BYTES, stop, self.num_bytes)
            yield offset, list(_joined(self.views(offset, end)))

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes of a range as they lie in memory."""
        index = bisect.bisect_right(self._ends, start)
        while start < stop:
            piece, end = self._pieces[index], self._ends[index]
            begin = end - len(piece)
            yield piece[start - begin : min(stop, end) - begin]
            start, index = end, index + 1


@final
class Digest:
    """The XXH3-128 of what is sent, taken while it is hot in the cache."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._next = 0

    def saw(self, offset: int, frames: Sequence[Frame]) -> None:
        """Note a chunk that leaves; one that leaves again counts once."""
        if offset == self._next:
            for frame in frames:
                self._hash.update(frame)
                self._next += len(frame)

    def of(self, stream: Outgoing) -> bytes:
        """Return the digest of a whole stream, of which all was seen or only a part."""
        for view in stream.views(self._next, stream.num_bytes):
            self._hash.update(view)
            self._next += len(view)
        return self._hash.digest()


@final
class Incoming:
    """What is received: how far it is, and what to ask for next.

    Args:
        num_bytes: The length of the stream.
        write: Takes what arrives, in order and once.
    """

    def __init__(self, num_bytes: int, write: Write) -> None:
        self.num_bytes = num_bytes
        self._write = write
        self._next = self._granted = 0
        self._gap = -1
        self._missing = False
        self._hash = xxhash.xxh3_128()
        self._attempts = 1

    @property
    def complete(self) -> bool:
        """Whether all bytes are here."""
        return self._next == self.num_bytes

    @property
    def underway(self) -> int:
        """Bytes that were asked for and are not here yet."""
        return self._granted - self._next

    @property
    def digest(self) -> bytes:
        """The XXH3-128 of what is here."""
        return self._hash.digest()

    def take(self, offset: int, frames: Sequence[Frame]) -> bool:
        """Take a chunk.

        Returns:
            Whether it was the next one; a repeated or a stale one is dropped.  So is
            one behind a gap, and what is missing will be wanted again.

        Raises:
            ProtocolError: If more came than was asked for.
        """
        if offset > self._next and self._gap != self._next:
            self._gap = self._next  # once: what follows the gap is on its way, too
            self._missing = True
        if offset != self._next:
            return False
        size = sum(len(frame) for frame in frames)
        if size > self.underway:
            msg = f"{self.underway} bytes were asked for, got {size}"
            raise ProtocolError(msg)
        self._write(offset, frames)
        for frame in frames:
            self._hash.update(frame)
        self._next += size
        return True

    def wanted(self, window_bytes: int) -> tuple[int, int] | None:
        """Return the range to ask for now, or None while enough is on its way."""
        stop = min(self._next + window_bytes, self.num_bytes)
        if self._missing and not self.complete:
            self._missing = False
            self._granted = max(stop, self._granted)
            return self._next, self._granted
        if stop <= self._granted or self.underway > window_bytes // 2:
            return None
        start, self._granted = self._granted, stop
        return start, stop

    def interrupted(self) -> None:
        """Forget what was asked for: it was lost with the connection."""
        self._granted = self._next

    def again(self) -> bool:
        """Begin anew: what is here is not what was sent.

        Returns:
            Whether that is worth trying; not after several times.
        """
        self._attempts += 1
        self._next = self._granted = 0
        self._hash.reset()
        return self._attempts <= _MAX_ATTEMPTS


def _joined(views: Iterator[memoryview]) -> Iterator[Frame]:
    """Yield the views, neighbours that are small in one copy."""
    small: list[memoryview] = []
    for view in views:
        if len(view) < _SMALL_BYTES:
            small.append(view)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield view
    if small:
        yield b"".join(small)
