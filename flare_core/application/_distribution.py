"""Hands the global model out, to each site as often as it asks."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias, final

from flare_core.application._publication import Publication
from flare_core.application._round_report import RoundReport
from flare_core.communication import INITIAL, Chunk, ToSite, Want

_log = logging.getLogger(__name__)
Send: TypeAlias = Callable[[str, ToSite | Chunk], None]
"""Sends a message to a site."""


@final
class Distribution:
    """One global model on its way to the sites.

    Args:
        model: It.
        number: Of the round that it starts, or of the rounds played.
        final: Whether no round follows.
        counted: The last round that an update of each site counted in.
        send: How to reach a site.
        report: Told of what was sent.
    """

    def __init__(
        self,
        model: Publication,
        number: int,
        *,
        final: bool,
        counted: Mapping[str, int],
        send: Send,
        report: RoundReport,
    ) -> None:
        self._model = model
        self._number = number
        self._final = final
        self._counted = counted
        self._send = send
        self._report = report

    def announce(self, site: str) -> None:
        """Tell a site of it."""
        counted = self._counted.get(site, INITIAL)
        start = self._model.start(self._number, final=self._final, counted=counted)
        self._report.sent(site, len(start.short))
        self._send(site, start)

    def serve(self, site: str, want: Want) -> None:
        """Send a site what it asks for; one that asks for an older model is told."""
        chunks = self._model.chunks(want)
        if chunks is None:  # it was slow, and the round went on
            self.announce(site)
            return
        for chunk in chunks:
            self._report.sent(site, sum(len(frame) for frame in chunk.frames))
            self._send(site, chunk)

    def shared(self, site: str) -> None:
        """Note that a site has taken it from the spool that it shares."""
        self._report.sent(site, self._model.wire_bytes)
