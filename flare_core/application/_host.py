"""One socket, one thread, any number of runs: messages come in, models go out."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from flare_core._errors import FlareError, ProtocolError
from flare_core._plan import Plan
from flare_core.application._desk import Asker, Desk, NoDesk
from flare_core.application._events import Observer
from flare_core.application._sessions import Session, Sessions
from flare_core.application._stage import Stage
from flare_core.communication import (
    Aborted,
    Access,
    Ask,
    Chunk,
    Hello,
    KeyPair,
    Ping,
    Pong,
    Received,
    Renew,
    ToServer,
    ToSite,
    ZmqRouter,
    decode_to_server,
    encode,
)

_log = logging.getLogger(__name__)
_LONGEST_NAME = 64
_ANSWER_S = 5.0
"""A process that does not answer for so long has its site's name no more."""
_AGAIN_S = 0.1
_PINGS = 4
"""A site that is given up was silent for so many of the times it should have spoken."""


@final
class Host:
    """Plays runs with the sites that connect.

    Args:
        address: Where to listen; port 0 takes any free one.
        access: Decides who is let in, under CURVE; without it, this machine only.
        desk: Answers what is no part of a run, and says who may take part in one.
        patience_s: Seconds without a word after which a site is given up; however long
            it trains, it says something four times as often.
        num_threads: Cores that each run may average on.

    Raises:
        ConfigurationError: If the address cannot be had.
    """

    def __init__(
        self,
        address: str,
        *,
        access: Access | None = None,
        desk: Desk | None = None,
        patience_s: float,
        num_threads: int,
    ) -> None:
        self._patience_s = patience_s
        self._num_threads = num_threads
        self._desk: Desk = desk or NoDesk()
        self._sessions = Sessions()
        self._stages: dict[str, Stage] = {}
        self._over: set[str] = set()
        self._contests: dict[bytes, _Contest] = {}
        self._next_key = ""
        self._orders: deque[Callable[[], object]] = deque()
        self._closers: list[threading.Thread] = []
        self._router = ZmqRouter(address, access=access)

    @property
    def endpoint(self) -> str:
        """The address that sites connect to, with its real port."""
        return self._router.endpoint

    def listen(self, address: str) -> None:
        """Listen at another address, too; before `serve` only."""
        self._router.listen(address)

    def open(
        self,
        name: str,
        plan: Plan,
        *,
        spool: Path,
        observer: Observer,
        preflight: bool = False,
        share_spool: bool = False,
        lasting: bool = False,
    ) -> Stage:
        """Set up a run, for `Stage.open` to open; its arguments are those of `Stage`.

        Before `serve`, or on its thread.

        Raises:
            ConfigurationError: If its strategy is not installed.
        """
        stage = Stage(
            name,
            plan,
            spool=spool,
            observer=observer,
            send=partial(self._send, name),
            post=self.post,
            ping_s=self._patience_s / _PINGS,
            num_threads=self._num_threads,
            preflight=preflight,
            share_spool=share_spool,
            lasting=lasting,
        )
        self._stages[name] = stage
        return stage

    def expect(self, stage: Stage) -> None:
        """Wait for the sites that take part in a run which was taken up again."""
        for site in stage.run.lobby.present:
            self._sessions.expect(stage, site)

    def stage(self, name: str) -> Stage | None:
        """Return where a run is played; None if it is not, or no more."""
        return self._stages.get(name)

    def post(self, order: Callable[[], object]) -> None:
        """Have something done on the server's thread, soon; from any thread."""
        self._orders.append(order)
        self._router.wake()

    def reply(self, peer: bytes, message: ToSite) -> None:
        """Answer a connection; on the server's thread only."""
        self._router.send(peer, encode(message))

    def announce(self, key: str) -> list[str]:
        """Tell who takes part, and who comes, of the key that is next.

        Args:
            key: The public one; empty if there will be none.

        Returns:
            The sites that were told.
        """
        self._next_key = key
        sessions = list(self._sessions) if key else []
        for session in sessions:
            self.reply(session.peer, Renew(key=key))
        return [session.site for session in sessions]

    def renew(self, keys: KeyPair) -> None:
        """Be known by other keys to who connects from now on.

        Raises:
            ConfigurationError: If somebody else took the address meanwhile.
        """
        self._router.renew(keys)
        self._next_key = ""

    def cut_off(self, user: str) -> None:
        """End all that somebody takes part in; on the server's thread only."""
        self._router.cut_off(user)
        for session in [one for one in self._sessions if one.site == user]:
            self._lose(session, "its key was revoked")

    def serve(self, *, until: Callable[[], bool]) -> None:
        """Play, until something is so."""
        look_s = self._patience_s / _PINGS
        look_at = time.monotonic() + look_s
        while not until():
            began = time.monotonic()
            hurry_s = _AGAIN_S if self._contests else look_s
            received = self._router.receive(timeout_s=hurry_s)
            while self._orders:
                _guarded(self._orders.popleft())
            if received is not None:
                _guarded(partial(self._handle, received))
            for contest in list(self._contests.values()):
                self._look_again(contest)
            spent_s = time.monotonic() - began
            if spent_s > 2 * look_s:  # it was this server that said nothing
                self._sessions.excuse(spent_s)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + look_s
                _guarded(self._desk.tick)
                for session in self._sessions.silent_since(began - self._patience_s):
                    reason = f"nothing was heard of it for {self._patience_s:g} s"
                    self._lose(session, reason)
            self._close_what_is_over()

    def close(self, error: BaseException | None = None) -> None:
        """End all runs; those that are not over fail by the error."""
        for stage in self._stages.values():
            if error is not None and not stage.run.over:
                stage.fail(error)
            stage.end()
            stage.close()
        for closer in self._closers:
            closer.join()
        self._router.close()

    def _handle(self, received: Received) -> None:
        try:
            message = decode_to_server(received.frames)
        except ProtocolError as exc:
            count = len(received.frames)
            _log.debug("ignored %d frames from a stranger: %s", count, exc)
            self._desk.garbage(received.user, str(exc))
            return
        peer = received.peer
        if isinstance(message, Hello):
            self._greet(received, message)
        elif isinstance(message, Ask):
            answer = self._desk.answer(Asker(received.user, peer), message)
            if answer is not None:
                self.reply(peer, answer)
        elif (session := self._sessions.of_peer(peer)) is not None:
            self._hear(session, message)
        else:
            self._turn_away(peer, message)

    def _hear(self, session: Session, message: ToServer | Chunk) -> None:
        session.heard = time.monotonic()
        if isinstance(message, Ping):
            if message.answer:
                self.reply(session.peer, Pong())
        elif isinstance(message, Pong):
            self._is_there(session)
        elif not session.stage.run.over:
            session.stage.do(lambda: session.stage.run.receive(session.site, message))

    def _greet(self, received: Received, hello: Hello) -> None:
        """Let a site in, unless something is against it."""
        peer = received.peer
        objection = self._desk.objection(received.user, hello.site)
        stage = None if objection else self._stage_for(hello)
        if not isinstance(stage, Stage):
            self.reply(peer, Aborted(reason=objection or str(stage)))
            return
        known = self._sessions.of_site(stage.name, hello.site)
        again = known is not None and known.is_of(hello)
        if known is not None and again and known.is_before(hello):
            return  # it has come back over another connection since
        objection = "" if again else self._objection(peer, hello, stage)
        objection = objection or stage.run.lobby.unwanted(hello.site)
        if objection:
            self.reply(peer, Aborted(reason=objection))
        elif known is not None and not again and self._may_be_there(known):
            contest = _Contest(known, hello, peer, time.monotonic() + _ANSWER_S)
            self._contests[known.peer] = contest
            self._look_again(contest)
        else:
            self._let_in(stage, hello, peer, again=again)

    def _let_in(self, stage: Stage, hello: Hello, peer: bytes, *, again: bool) -> None:
        restarted = self._sessions.of_site(stage.name, hello.site)
        again = again or (restarted is not None and restarted.hello is None)
        self._sessions.open(stage, hello, peer)
        stage.do(lambda: stage.run.welcome(hello.site, again=again))
        if self._next_key:
            self.reply(peer, Renew(key=self._next_key))

    def _may_be_there(self, known: Session) -> bool:
        """Return whether another process has this site's name, as far as is known."""
        taking_part = known.site in known.stage.run.lobby.present
        return taking_part and not known.given_up and bool(known.peer)

    def _look_again(self, contest: "_Contest") -> None:
        """See who has the name: a process that is gone has it no more."""
        known = contest.known
        there = self._router.send(known.peer, encode(Ping()))
        if there and time.monotonic() < contest.until:
            return
        del self._contests[known.peer]
        if there:
            reason = f"another process takes part as {known.site!r} since"
            self.reply(known.peer, Aborted(reason=reason))
        self._let_in(known.stage, contest.hello, contest.peer, again=False)

    def _is_there(self, session: Session) -> None:
        """A process that another one has the name of is alive: the other may go."""
        contest = self._contests.pop(session.peer, None)
        if contest is not None:
            reason = (
                f"a site called {session.site!r} is connected; names must be unique"
            )
            self.reply(contest.peer, Aborted(reason=reason))

    def _stage_for(self, hello: Hello) -> Stage | str:
        """Return where the run is played that a site means; or why there is none."""
        found = self._stages.get(hello.run)
        if found is not None:
            return found
        if hello.run:
            return self._no_run(hello)
        stages = list(self._stages.values())
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

    def _no_run(self, hello: Hello) -> str:
        what = "is over" if hello.run in self._over else "is none of this server's"
        names = (
            n for n, one in self._stages.items() if one.run.lobby.awaits(hello.site)
        )
        here = ", ".join(sorted(names)) or "none"
        return (
            f"site {hello.site!r} takes part in run {hello.run[:_LONGEST_NAME]}, and "
            f"that {what}; the runs that await it: {here}; start its script again"
        )

    def _objection(self, peer: bytes, hello: Hello, stage: Stage) -> str:
        other = self._sessions.of_peer(peer)
        if other is not None and (other.site, other.stage) != (hello.site, stage):
            return f"this connection is that of site {other.site!r} already"
        return stage.run.lobby.objection(hello)

    def _turn_away(self, peer: bytes, message: ToServer | Chunk) -> None:
        """End the wait of a peer that is no site, or is one no more."""
        if isinstance(message, Chunk):
            return  # what was on its way when the connection broke
        kind = type(message).__name__
        _log.debug("turned away %s of a peer that said no hello", kind)
        reason = (
            "the server does not know this connection: it was given up, or the server "
            "was started again, or another site has taken the same name"
        )
        self.reply(peer, Aborted(reason=reason))

    def _lose(self, session: Session, reason: str) -> None:
        """Give a site up."""
        self._sessions.give_up(session)
        run = session.stage.run
        if session.site in run.lobby.present:
            session.stage.do(lambda: run.site_left(session.site, reason, failed=True))

    def _close_what_is_over(self) -> None:
        for stage in [one for one in self._stages.values() if one.run.over]:
            stage.end()
            self._sessions.close_all_of(stage)
            self._contests = {
                peer: contest
                for peer, contest in self._contests.items()
                if contest.known.stage is not stage
            }
            self._over.add(stage.name)
            del self._stages[stage.name]
            closer = threading.Thread(target=stage.close, name=f"flare-{stage.name}")
            closer.start()
            self._closers = [one for one in self._closers if one.is_alive()]
            self._closers.append(closer)

    def _send(self, run: str, site: str, message: ToSite | Chunk) -> None:
        """Send a message; a site whose connection broke will ask for it again."""
        session = self._sessions.of_site(run, site)
        if session is not None and session.peer:
            self._router.send(session.peer, encode(message))


@final
@dataclass(frozen=True, slots=True)
class _Contest:
    """A process says hello as a site that another process is, or was.

    Attributes:
        known: The other one.
        hello: What it says.
        peer: Its connection.
        until: When the other one has lost if it says nothing, on the monotonic clock.
    """

    known: Session
    hello: Hello
    peer: bytes
    until: float


def _guarded(act: Callable[[], object]) -> None:
    """Do something of which all runs would suffer if it failed: a disk may be full."""
    try:
        act()
    except FlareError:
        _log.exception("the server could not do what it should; it goes on")
