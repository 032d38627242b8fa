"""Where the server receives updates: each becomes a file in the run's spool.

All uploads share one room of bytes on their way, so that the memory behind them does
not grow with the number of sites.  Those who wait for room get it in the order of their
names, which is the order in which they are averaged.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from flare_core.communication._files import ReceivedFile, mapped
from flare_core.communication._messages import Chunk, Commit, Offer, Want
from flare_core.communication._safetensors import Frame
from flare_core.communication._streams import CHUNK_BYTES, WINDOW, Incoming

_ROOM_BYTES = WINDOW * CHUNK_BYTES
_PLAIN = ".safetensors"


@final
@dataclass(frozen=True, slots=True)
class Parcel:
    """An update that has arrived whole.

    Attributes:
        site: Who sent it.
        offer: What the site said of it.
        path: The file it is in; None for a short one, which is in the offer.
    """

    site: str
    offer: Offer
    path: Path | None

    @property
    def plain(self) -> "Parcel":
        """The same, when its file was decoded: that one has another name."""
        if self.path is None:
            return self
        return Parcel(self.site, self.offer, self.path.with_suffix(_PLAIN))

    @property
    def is_plain(self) -> bool:
        """Whether its file is decoded."""
        return self.path is not None and self.path.suffix == _PLAIN

    def contents(self) -> Frame:
        """Return its bytes, mapped or in memory."""
        return self.offer.short if self.path is None else mapped(self.path)


@final
class _Upload:
    def __init__(self, offer: Offer, path: Path | None) -> None:
        self.offer = offer
        self.path = path
        self._file = ReceivedFile(path, offer.num_bytes) if path else None
        self.incoming = Incoming(offer.num_bytes, self._write)
        if offer.is_short:
            self.incoming.wanted(offer.num_bytes)
            self.incoming.take(0, [offer.short])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, offset: int, frames: Sequence[Frame]) -> None:
        if self._file is not None:
            self._file.write(offset, frames)

    @property
    def need(self) -> int:
        """The least room it can move in."""
        return min(self.offer.num_bytes, CHUNK_BYTES)


@final
class Mailbox:
    """Receives the sites' streams, at most one of each site at a time."""

    def __init__(self) -> None:
        self._uploads: dict[str, _Upload] = {}
        self._waiting: list[str] = []
        self._admitted: set[str] = set()
        self._touched: set[str] = set()
        self._used_bytes = 0
        self._committed: dict[str, bytes] = {}

    def has(self, site: str, stream: bytes) -> bool:
        """Return whether a stream of a site has arrived already."""
        return self._committed.get(site) == stream

    def receives(self, site: str) -> bool:
        """Return whether a stream of a site is underway."""
        return site in self._uploads

    def underway(self) -> list[tuple[str, Offer]]:
        """Return the streams that are underway, with their sites."""
        return [(site, upload.offer) for site, upload in self._uploads.items()]

    def open(self, site: str, offer: Offer, path: Path | None) -> None:
        """Begin to receive a stream, or go on with it after a break.

        A short one is here already: it needs a commit only.

        Args:
            site: Who sends it.
            offer: What it is.
            path: Where to put it; a short one may stay in memory.

        Raises:
            ConfigurationError: If there is no room for the file.
        """
        upload = self._uploads.get(site)
        if upload is not None and upload.offer.stream == offer.stream:
            upload.incoming.interrupted()
            self._touched.add(site)
            return
        self.forget(site)
        self._uploads[site] = _Upload(offer, path)
        if not offer.is_short:
            heapq.heappush(self._waiting, site)

    def spooled(self, site: str, offer: Offer, path: Path | None) -> Parcel:
        """Return a stream that never travelled: it is in its file already."""
        self.forget(site)
        self._committed[site] = offer.stream
        return Parcel(site, offer, path)

    def take(self, site: str, chunk: Chunk) -> None:
        """Write a chunk to its file; a stale one is dropped.

        Raises:
            ProtocolError: If it is more than was asked for.
        """
        upload = self._uploads.get(site)
        if upload is not None and chunk.stream == upload.offer.stream:
            upload.incoming.take(chunk.offset, chunk.frames)
            self._touched.add(site)

    def commit(self, site: str, commit: Commit) -> Parcel | None:
        """Return what has arrived whole; None if it is to be sent again.

        Raises:
            CorruptedError: If it was changed on its way, several times.
        """
        upload = self._uploads.get(site)
        if upload is None or commit.stream != upload.offer.stream:
            return None
        if not upload.incoming.complete:
            return None
        if upload.incoming.digest != commit.digest:
            if not upload.offer.is_short and upload.incoming.again():
                self._touched.add(site)
                return None
            raise CorruptedError
        self.forget(site)
        self._committed[site] = commit.stream
        return Parcel(site, upload.offer, upload.path)

    def forget(self, site: str) -> None:
        """Drop what is underway from a site."""
        upload = self._uploads.pop(site, None)
        if upload is None:
            return
        upload.close()
        if site in self._admitted:
            self._admitted.remove(site)
            self._used_bytes -= upload.need

    def disown(self, site: str) -> None:
        """Drop what is underway from a site, and forget what has arrived."""
        self.forget(site)
        self._committed.pop(site, None)

    def close(self) -> None:
        """Drop all that is underway."""
        for site in list(self._uploads):
            self.forget(site)

    def wants(self) -> Iterator[tuple[str, Want]]:
        """Yield what to ask of whom now; to be called after each of the others."""
        self._admit()
        share = _ROOM_BYTES // max(1, len(self._admitted))
        window_bytes = min(max(share, CHUNK_BYTES), WINDOW * CHUNK_BYTES)
        touched = self._touched & self._admitted
        self._touched.clear()
        for site in sorted(touched):
            upload = self._uploads[site]
            wanted = upload.incoming.wanted(window_bytes)
            if wanted is not None:
                start, stop = wanted
                yield site, Want(stream=upload.offer.stream, start=start, stop=stop)

    def _admit(self) -> None:
        """Let those in for whom there is room; the first by name comes first."""
        while self._waiting:
            upload = self._uploads.get(self._waiting[0])
            if upload is not None and self._waiting[0] not in self._admitted:
                if self._used_bytes + upload.need > _ROOM_BYTES:
                    return
                self._used_bytes += upload.need
                self._admitted.add(self._waiting[0])
                self._touched.add(self._waiting[0])
            heapq.heappop(self._waiting)


class CorruptedError(Exception):
    """What arrived is not what was sent, again and again."""
