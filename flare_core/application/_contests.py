"""Two processes that say to be the same site: the one that is there has the name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from flare_core.application._sessions import Session
from flare_core.application._stage import Stage
from flare_core.communication import Aborted, Hello, Ping, ToSite

Reach: TypeAlias = Callable[[bytes, ToSite], bool]
"""Sends a message; tells whether the connection is still there."""
LetIn: TypeAlias = Callable[[Stage, Hello, bytes], object]
"""Lets a process take part that has said hello over a connection."""
LOOK_S = 0.1
"""How often to look whether a connection is gone."""
_ANSWER_S = 5.0
"""A process that does not answer for so long has its site's name no more."""


@final
@dataclass(frozen=True, slots=True)
class _Contest:
    known: Session
    hello: Hello
    peer: bytes
    until: float


@final
class Contests:
    """Asks who has a site's name whether he is still there, when another one comes.

    A script that was killed and is started again comes before the network has told of
    its end.  So the new process waits until the old one has answered, or has not.

    Args:
        reach: How to send.
        let_in: Called with the process that may take part.
    """

    def __init__(self, reach: Reach, let_in: LetIn) -> None:
        self._reach = reach
        self._let_in = let_in
        self._open: dict[bytes, _Contest] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, known: Session, hello: Hello, peer: bytes) -> None:
        """Ask a process whether it is there, as another one says to be its site."""
        until = time.monotonic() + _ANSWER_S
        self._open[known.peer] = _Contest(known, hello, peer, until)
        self.look()

    def answered(self, session: Session) -> None:
        """Turn away who came later: the other one is there."""
        contest = self._open.pop(session.peer, None)
        if contest is not None:
            reason = (
                f"a site called {session.site!r} is connected; names must be unique"
            )
            self._reach(contest.peer, Aborted(reason=reason))

    def look(self) -> None:
        """Let those in whose rival is gone, or has not answered in time."""
        for peer, contest in list(self._open.items()):
            there = self._reach(peer, Ping())
            if there and time.monotonic() < contest.until:
                continue
            del self._open[peer]
            site = contest.known.site
            if there:
                reason = f"another process takes part as {site!r} since"
                self._reach(peer, Aborted(reason=reason))
            self._let_in(contest.known.stage, contest.hello, contest.peer)
