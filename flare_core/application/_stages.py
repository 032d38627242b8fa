"""The runs that a host plays: opened, tried again where a disk was full, closed."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, final

from flare_core._errors import ConfigurationError
from flare_core.application._sessions import Sessions
from flare_core.application._stage import Stage
from flare_core.communication import Again, Hello, ToSite

Reply: TypeAlias = Callable[[bytes, ToSite], object]
"""Sends a message over a connection."""
_LONGEST_NAME = 64
_WAIT_S = 2.0
_LONGEST_WAIT_S = 60.0


@final
@dataclass(slots=True)
class _Played:
    """A run, and how to take it up once more.

    Attributes:
        make: Returns a stage for it.
        stage: Where it is played.
        waits_s: How long to wait before it is taken up, should it halt.
        closer: Ends the threads of a stage that has halted.
        due: When it is taken up, on the monotonic clock.
        callers: Connections that have said hello meanwhile.
    """

    make: Callable[[], Stage]
    stage: Stage
    waits_s: float = _WAIT_S
    closer: threading.Thread | None = None
    due: float = 0.0
    callers: set[bytes] = field(default_factory=set[bytes])


@final
class Stages:
    """Finds runs by name and by what a site says; for the server's thread.

    Args:
        sessions: Of their sites.
        reply: How to answer a connection.
    """

    def __init__(self, sessions: Sessions, reply: Reply) -> None:
        self._sessions = sessions
        self._reply = reply
        self._played: dict[str, _Played] = {}
        self._over: set[str] = set()
        self._closers: list[threading.Thread] = []

    def add(self, make: Callable[[], Stage]) -> Stage:
        """Play one more run.

        Args:
            make: Returns a new stage for it.
        """
        stage = make()
        self._played[stage.name] = _Played(make, stage)
        return stage

    def open(self, stage: Stage, endpoint: str) -> None:
        """Open a run, and wait for its sites if an earlier server has begun it.

        Raises:
            ConfigurationError: If it cannot be opened.
        """
        stage.open(endpoint)
        for site in stage.run.lobby.present:
            known = self._sessions.of_site(stage.name, site)
            if known is None or known.given_up:  # while the run was halted
                self._sessions.expect(stage, site)

    def named(self, name: str) -> Stage | None:
        """Return where a run is played; None if it is not, or no more."""
        played = self._played.get(name)
        return None if played is None else played.stage

    def of(self, hello: Hello) -> Stage | str:
        """Return where the run is played that a site means; or why there is none."""
        found = self.named(hello.run)
        if found is not None:
            return found
        if hello.run:
            return self._no_run(hello)
        stages = list(self)
        if len(stages) != 1:
            stages = [one for one in stages if one.run.lobby.awaits(hello.site)]
        if not stages:
            return f"no run awaits site {hello.site!r}; `flare run create` makes one"
        if len(stages) > 1:
            names = ", ".join(sorted(stage.name for stage in stages))
            return (
                f"several runs await site {hello.site!r}: {names}; name one of them "
                "with `flare run --run NAME`"
            )
        return stages[0]

    def calls(self, stage: Stage, peer: bytes) -> None:
        """Note who said hello while a run was halted, to be asked again."""
        self._played[stage.name].callers.add(peer)

    @property
    def due(self) -> float:
        """When to `look` at the latest, on the monotonic clock."""
        moments = (
            one.stage.run.due if one.closer is None else one.due
            for one in self._played.values()
        )
        return min(moments, default=math.inf)

    def look(self, endpoint: str) -> None:
        """Do what is due, close what is over, take up what has halted long ago."""
        for name, played in list(self._played.items()):
            stage = played.stage
            if time.monotonic() >= stage.run.due and not stage.halted:
                stage.do(stage.run.tick)
            if stage.run.over:
                stage.end()
            if stage.run.over and not stage.halted:
                self._sessions.close_all_of(stage)
                self._over.add(name)
                del self._played[name]
                for peer in played.callers:  # says hello once more, and is told
                    self._reply(peer, Again())
                if played.closer is not None:  # it was halted, and its folder kept
                    played.closer.join()
                self._close(stage)
            elif stage.halted and played.closer is None:
                stage.end()
                played.closer = self._close(stage)
                played.due = time.monotonic() + played.waits_s
                played.waits_s = min(2 * played.waits_s, _LONGEST_WAIT_S)
            elif played.closer is not None and time.monotonic() >= played.due:
                self._take_up(played, endpoint)

    def close(self, error: BaseException | None) -> None:
        """Close all; those that are not over fail by the error, if there is one."""
        for played in self._played.values():
            stage = played.stage
            if error is not None and not stage.run.over:
                stage.fail(error)
            stage.end()
            if played.closer is None:
                stage.close()
        for closer in self._closers:
            closer.join()

    def __iter__(self) -> Iterator[Stage]:
        return iter([played.stage for played in self._played.values()])

    def _close(self, stage: Stage) -> threading.Thread:
        closer = threading.Thread(target=stage.close, name=f"flare-{stage.name}")
        closer.start()
        self._closers = [one for one in self._closers if one.is_alive()]
        self._closers.append(closer)
        return closer

    def _take_up(self, played: _Played, endpoint: str) -> None:
        """Go on with a run that halted, as if the server had been started again."""
        if played.closer is not None:
            played.closer.join()
        before, played.closer = played.stage, None
        stage = played.stage = played.make()
        self._sessions.move(before, stage)
        try:
            self.open(stage, endpoint)
        except ConfigurationError as exc:
            stage.fail(exc)
            return
        played.waits_s = _WAIT_S
        known = {one.peer for one in self._sessions if one.stage is stage and one.peer}
        for peer in known | played.callers:
            self._reply(peer, Again())
        played.callers.clear()

    def _no_run(self, hello: Hello) -> str:
        what = "is over" if hello.run in self._over else "is none of this server's"
        names = (one.name for one in self if one.run.lobby.awaits(hello.site))
        here = ", ".join(sorted(names)) or "none"
        return (
            f"site {hello.site!r} takes part in run {hello.run[:_LONGEST_NAME]}, and "
            f"that {what}; the runs that await it: {here}; start its script again"
        )
