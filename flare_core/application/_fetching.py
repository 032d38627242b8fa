"""How the bytes of global models come to a site."""

import logging
from collections.abc import Callable
from typing import final

import xxhash

from flare_core.application._edge import Edge
from flare_core.application._mirror import Mirror, Mirrors
from flare_core.application._spool import Spool
from flare_core.communication import Courier, Incoming, Start, ToSite, mapped

_log = logging.getLogger(__name__)


@final
class Fetching:
    """Gets files of global models by the shortest way, into memory that is used again.

    Args:
        site: Whose name stands in logs.
        edge: Knows what the site holds already, and decodes.
        spool: That of a server on this machine, if the site shares it.
        courier: Returns who speaks to the server.
    """

    def __init__(
        self,
        site: str,
        edge: Edge,
        spool: Spool | None,
        courier: Callable[[], Courier],
    ) -> None:
        self._site = site
        self._edge = edge
        self._spool = spool
        self._courier = courier
        self._mirrors = Mirrors()

    def model(self, start: Start) -> memoryview | ToSite:
        """Return the file of a global model, or what came instead."""
        shared = self._shared(start)
        if shared is not None:
            return shared
        mirror = self._mirrors.take(start.num_bytes)
        if len(start.short) == start.num_bytes:
            mirror.write(0, [start.short])
            return mirror.file
        delta = self._edge.short_cut(start)
        if delta is not None:
            encoded = self.stream(delta.stream, delta.num_bytes)
            if not isinstance(encoded, memoryview):
                return encoded
            mirror.write_all(self._edge.decoded(encoded))
            if xxhash.xxh3_128(mirror.file).digest() == start.stream:
                return mirror.file
            _log.warning(
                "site %r: the delta of round %d gave another model than the server's; "
                "fetching the whole one",
                self._site,
                start.round_number,
            )
        return self._into(mirror, start.stream)

    def stream(self, stream: bytes, num_bytes: int) -> memoryview | ToSite:
        """Return the bytes of a stream, or what came instead."""
        return self._into(self._mirrors.take(num_bytes), stream)

    def _into(self, mirror: Mirror, stream: bytes) -> memoryview | ToSite:
        incoming = Incoming(len(mirror.file), mirror.write)
        return self._courier().fetch(stream, incoming) or mirror.file

    def _shared(self, start: Start) -> memoryview | None:
        """Return the file of a global model that lies in a spool on this machine."""
        if self._spool is None or len(start.short) == start.num_bytes:
            return None
        try:
            return mapped(self._spool.model(start.stream), private=True)
        except OSError as exc:  # it is on another machine, or the round has gone on
            _log.info("site %r fetches the global model: %s", self._site, exc)
            return None
