"""One socket, one thread, any number of runs: messages come in, models go out."""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import final

from flare_core._errors import FlareError, ProtocolError
from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application._contests import LOOK_S, Contests
from flare_core.application._desk import Asker, Desk, NoDesk
from flare_core.application._epilogue import Epilogues
from flare_core.application._events import Observer
from flare_core.application._sessions import Session, Sessions
from flare_core.application._stage import Stage
from flare_core.application._stages import Stages
from flare_core.communication import (
    PROTOCOL,
    Aborted,
    Access,
    Again,
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
        self._stages = Stages(self._sessions, self.reply)
        self._contests = Contests(self.reply, self._let_in)
        self._next_key = ""
        self._orders: deque[Callable[[], object]] = deque()
        self._epilogues = Epilogues(self.reply, self.post, ping_s=patience_s / _PINGS)
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
        record: Path | None = None,
        above: Site | None = None,
    ) -> Stage:
        """Set up a run, for `Stage.open` to open; its arguments are those of `Stage`.

        Before `serve`, or on its thread.

        Raises:
            ConfigurationError: If its strategy is not installed, or updates are to be
                kept and there is no record.
        """
        make = partial(
            Stage,
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
            record=record,
            above=above,
        )
        return self._stages.add(make)

    def begin(self, stage: Stage) -> None:
        """Open a run, and go on with it if an earlier server has begun it.

        Raises:
            ConfigurationError: If there is no room for its folders, or what is in them
                is damaged.
        """
        self._stages.open(stage, self.endpoint)

    def stage(self, name: str) -> Stage | None:
        """Return where a run is played; None if it is not, or no more."""
        return self._stages.named(name)

    def post(self, order: Callable[[], object]) -> None:
        """Have something done on the server's thread, soon; from any thread."""
        self._orders.append(order)
        self._router.wake()

    def reply(self, peer: bytes, message: ToSite | Chunk) -> bool:
        """Answer a connection, if it is still there; on the server's thread only."""
        return self._router.send(peer, encode(message))

    def announce(self, key: str) -> list[str]:
        """Tell who takes part, and who comes, of the key that is next.

        Args:
            key: The public one; empty if there will be none.

        Returns:
            The sites that were told.
        """
        self._next_key = key
        sessions = list(self._sessions) if key else []
        return [one.site for one in sessions if self.reply(one.peer, Renew(key=key))]

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
            wait_s = LOOK_S if self._contests else look_s
            wait_s = max(0.0, min(wait_s, self._stages.due - began))
            received = self._router.receive(timeout_s=wait_s)
            while self._orders:
                _guarded(self._orders.popleft())
            if received is not None:
                _guarded(partial(self._handle, received))
            self._contests.look()
            spent_s = time.monotonic() - began
            if spent_s > 2 * look_s:  # it was this server that said nothing
                self._sessions.excuse(spent_s)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + look_s
                _guarded(self._desk.tick)
                for session in self._sessions.silent_since(began - self._patience_s):
                    reason = f"nothing was heard of it for {self._patience_s:g} s"
                    self._lose(session, reason)
            self._stages.look(self.endpoint)

    def close(self, error: BaseException | None = None) -> None:
        """End all runs; those that are not over fail by the error."""
        self._stages.close(error)
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
        elif not self._epilogues.hear(peer, message):
            self._turn_away(peer, message)

    def _hear(self, session: Session, message: ToServer | Chunk) -> None:
        session.heard = time.monotonic()
        if isinstance(message, Ping):
            if message.answer:
                self.reply(session.peer, Pong())
        elif isinstance(message, Pong):
            self._contests.answered(session)
        elif not session.stage.run.over:
            session.stage.do(lambda: session.stage.run.receive(session.site, message))

    def _greet(self, received: Received, hello: Hello) -> None:
        """Let a site in, unless something is against it."""
        peer = received.peer
        objection = self._desk.objection(received.user, hello.site)
        objection = objection or _other_protocol(hello)
        if objection:
            self.reply(peer, Aborted(reason=objection))
            return
        stage = self._stages.of(hello)
        if not isinstance(stage, Stage):
            self._no_stage(peer, hello, why=stage)
            return
        if stage.halted:
            self._stages.calls(stage, peer)
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
            self._contests.begin(known, hello, peer)
        else:
            self._let_in(stage, hello, peer)

    def _no_stage(self, peer: bytes, hello: Hello, why: str) -> None:
        """Send a site away, or tell it how its run ended."""
        try:
            finished = self._desk.finished(hello)
        except FlareError as exc:
            finished, why = None, f"{why}: {exc}"
        if finished is None:
            self.reply(peer, Aborted(reason=why))
        else:
            self._epilogues.begin(peer, finished)

    def _let_in(self, stage: Stage, hello: Hello, peer: bytes) -> None:
        if stage.run.over:  # it ended while a site's name was contested
            self.reply(peer, Again())
            return
        known = self._sessions.of_site(stage.name, hello.site)
        again = known is not None and (known.hello is None or known.is_of(hello))
        self._sessions.open(stage, hello, peer)
        stage.do(lambda: stage.run.welcome(hello.site, again=again))
        if self._next_key:
            self.reply(peer, Renew(key=self._next_key))

    def _may_be_there(self, known: Session) -> bool:
        """Return whether another process has this site's name, as far as is known."""
        taking_part = known.site in known.stage.run.lobby.present
        return taking_part and not known.given_up and bool(known.peer)

    def _objection(self, peer: bytes, hello: Hello, stage: Stage) -> str:
        other = self._sessions.of_peer(peer)
        if other is not None and (other.site, other.stage) != (hello.site, stage):
            return f"this connection is that of site {other.site!r} already"
        return stage.run.lobby.unwanted(hello.site)

    def _turn_away(self, peer: bytes, message: ToServer | Chunk) -> None:
        """Ask a peer that has said no hello, or was given up, to say it."""
        if isinstance(message, Chunk):
            return  # what was on its way when the connection broke
        _log.debug("%s of a peer that said no hello", type(message).__name__)
        self.reply(peer, Again())

    def _lose(self, session: Session, reason: str) -> None:
        """Give a site up."""
        self._sessions.give_up(session)
        run = session.stage.run
        if session.site in run.lobby.present:
            session.stage.do(lambda: run.site_left(session.site, reason, failed=True))

    def _send(self, run: str, site: str, message: ToSite | Chunk) -> None:
        """Send a message; a site whose connection broke will ask for it again."""
        session = self._sessions.of_site(run, site)
        if session is not None and session.peer:
            self._router.send(session.peer, encode(message))


def _other_protocol(hello: Hello) -> str:
    """Return why a site does not understand this server; empty if it does."""
    if hello.protocol == PROTOCOL:
        return ""
    return (
        f"site {hello.site!r} speaks protocol {hello.protocol}, this server "
        f"{PROTOCOL}; install the same version of flare-adapters at both"
    )


def _guarded(act: Callable[[], object]) -> None:
    """Do something of which all runs would suffer if it failed: a disk may be full."""
    try:
        act()
    except FlareError:
        _log.exception("the server could not do what it should; it goes on")
