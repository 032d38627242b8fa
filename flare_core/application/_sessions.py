"""Which connection is whose: the sites that have said hello, run by run."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from flare_core.application._stage import Stage
from flare_core.communication import Hello


@final
@dataclass(slots=True)
class Session:
    """One site in one run: how it is reached, and when it was last heard.

    Attributes:
        stage: Where its run is played.
        site: Its name.
        hello: How it introduced itself; a session is known again by its mark.  None if
            it has not yet, since the server was started again.
        peer: Its connection; empty without one.
        heard: When it last said something, on the monotonic clock.
        given_up: Whether it was silent for too long, or sent away.
    """

    stage: Stage
    site: str
    hello: Hello | None
    peer: bytes
    heard: float
    given_up: bool = False

    def is_of(self, hello: Hello) -> bool:
        """Return whether who says hello is who is known already."""
        return self.hello is not None and self.hello.session == hello.session

    def is_before(self, hello: Hello) -> bool:
        """Return whether it has come over another connection since it said hello."""
        known = self.hello
        return known is not None and hello.connection < known.connection


@final
class Sessions:
    """Finds sessions by connection, and by run and site."""

    def __init__(self) -> None:
        self._by_peer: dict[bytes, Session] = {}
        self._by_site: dict[tuple[str, str], Session] = {}

    def of_peer(self, peer: bytes) -> Session | None:
        """Return the session that a connection is of."""
        return self._by_peer.get(peer)

    def of_site(self, run: str, site: str) -> Session | None:
        """Return the session of a site in a run."""
        return self._by_site.get((run, site))

    def open(self, stage: Stage, hello: Hello, peer: bytes) -> None:
        """Begin a session, or go on with one over a new connection."""
        self.close(self._by_site.get((stage.name, hello.site)))
        session = Session(stage, hello.site, hello, peer, time.monotonic())
        self._by_site[stage.name, hello.site] = self._by_peer[peer] = session

    def expect(self, stage: Stage, site: str) -> None:
        """Begin a session with a site that has to say hello yet."""
        session = Session(stage, site, None, b"", time.monotonic())
        self._by_site[stage.name, site] = session

    def move(self, before: Stage, after: Stage) -> None:
        """Go on with the sessions of a run at another stage."""
        for session in [one for one in self if one.stage is before]:
            session.stage = after

    def give_up(self, session: Session) -> None:
        """End a session, and know it again if it comes back."""
        self._by_peer.pop(session.peer, None)
        session.peer = b""
        session.given_up = True

    def close(self, session: Session | None) -> None:
        """End a session."""
        if session is not None:
            self._by_site.pop((session.stage.name, session.site), None)
            self._by_peer.pop(session.peer, None)

    def close_all_of(self, stage: Stage) -> None:
        """End the sessions of a run."""
        for session in [one for one in self if one.stage is stage]:
            self.close(session)

    def silent_since(self, moment: float) -> list[Session]:
        """Return the sessions whose site has said nothing since a moment."""
        return [one for one in self if one.heard < moment and not one.given_up]

    def excuse(self, seconds: float) -> None:
        """Count some seconds for nobody: it was the server that did not listen."""
        for session in self:
            session.heard += seconds

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_site.values()))
