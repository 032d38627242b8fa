"""The server's loop: takes messages in, plays the rounds, sends models out."""

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import msgspec

from flare_core._errors import ConfigurationError, ProtocolError
from flare_core._plan import Plan, plan_from
from flare_core.application._events import Observer, Result, RunEnded, RunOpened
from flare_core.application._run import Run
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    Aborted,
    Chunk,
    Frame,
    Hello,
    Ping,
    Pong,
    ToServer,
    ToSite,
    Welcome,
    ZmqRouter,
    decode_to_server,
    encode,
)

_log = logging.getLogger(__name__)
_PINGS = 4
"""A site that is given up was silent for so many of the times it should have spoken."""
_MOST_THREADS = 4
"""More do not make memory faster."""


@final
@dataclass(slots=True)
class _Session:
    """One connected site: how it is reached, and when it was last heard."""

    token: bytes
    peer: bytes
    heard: float


@final
class Server:
    """Plays one run with the sites that connect to it.

    Args:
        plan: What to play.
        address: Where to listen; port 0 takes any free one.
        folder: Where updates and models lie meanwhile, in a folder ``spool`` that is
            removed at the end; by default in the system's folder for such.  It needs
            room for each site's update and for four times the model.
        observer: Told of everything that happens, on the server's thread.
        preflight: Whether to compare the sites only, and train nothing.
        patience_s: Seconds without a word after which a site is given up; however long
            it trains, it says something four times as often.
        num_threads: Cores to average on; by default up to four of the machine's.
        share_spool: Whether sites on this machine may put their updates into that
            folder themselves, as their site files say; they must be trusted with it.

    Raises:
        ConfigurationError: If the plan breaks a rule or names a strategy that is not
            installed, or the address cannot be had.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        address: str = "tcp://127.0.0.1:0",
        folder: Path | None = None,
        observer: Observer = lambda _: None,
        preflight: bool = False,
        patience_s: float = 60.0,
        num_threads: int | None = None,
        share_spool: bool = False,
    ) -> None:
        self._observer = observer
        self._patience_s = patience_s
        self._num_threads = num_threads or min(os.cpu_count() or 1, _MOST_THREADS)
        self._sites: dict[bytes, str] = {}
        self._sessions: dict[str, _Session] = {}
        self._orders: deque[Callable[[], object]] = deque()
        self._name = secrets.token_hex(8)
        self._spool_made = False
        temporary = Path(tempfile.gettempdir(), f"flare-{self._name}")
        self._spool = folder / "spool" if folder else temporary
        # what Python made of it may break rules that a file could not
        self._plan = plan_from(msgspec.to_builtins(plan), source="plan")
        self._worker = Worker(self._order, num_threads=self._num_threads)
        ping_s = patience_s / _PINGS
        self._files = Spool(self._spool / self._name)
        self._run = Run(
            Welcome(plan=self._plan, run=self._name, ping_s=ping_s),
            spool=self._files,
            share=share_spool,
            send=self._send,
            worker=self._worker,
            observer=observer,
            preflight=preflight,
        )
        self._router = ZmqRouter(address)

    @property
    def spool(self) -> Path:
        """The folder for updates and models; it is there while the run is played."""
        return self._spool

    @property
    def endpoint(self) -> str:
        """The address that sites connect to, with its real port."""
        return self._router.endpoint

    def run(self) -> Result:
        """Play all rounds; returns when the last site has left, or the run aborted.

        Raises:
            ConfigurationError: If there is no room for the updates or the model.
        """
        try:
            self._make_spool()
            self._spool_made = True
            self._observer(RunOpened(self._plan, self.endpoint))
            self._serve()
            self._observer(RunEnded(self._run.result))
        except BaseException as exc:
            self._run.abort(f"the server failed: {type(exc).__name__}: {exc}")
            raise
        finally:
            self._worker.close()
            self._run.close()
            self._router.close()
            self._remove_spool()
        return self._run.result

    def lose(self, site: str, reason: str) -> None:
        """Tell the server that a site will not come back; from any thread."""
        self._order(partial(self._run.site_left, site, reason, failed=True))

    def stop(self, reason: str) -> None:
        """Abort the run; from any thread."""
        self._order(partial(self._run.abort, reason))

    def _order(self, order: Callable[[], object]) -> None:
        self._orders.append(order)
        self._router.wake()

    def _serve(self) -> None:
        look_s = self._patience_s / _PINGS
        look_at = time.monotonic() + look_s
        while not self._run.over:
            began = time.monotonic()
            received = self._router.receive(timeout_s=look_s)
            while self._orders:
                self._orders.popleft()()
            if received is not None and not self._run.over:
                self._handle(*received)
            spent_s = time.monotonic() - began
            if spent_s > 2 * look_s:  # it was this server that said nothing
                for session in self._sessions.values():
                    session.heard += spent_s
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + look_s
                self._lose_the_silent()

    def _handle(self, peer: bytes, frames: list[Frame]) -> None:
        try:
            message = decode_to_server(frames)
        except ProtocolError as exc:
            _log.info("ignored %d frames from a stranger: %s", len(frames), exc)
            return
        if isinstance(message, Hello):
            self._greet(peer, message)
            return
        site = self._sites.get(peer)
        if site is None:
            self._turn_away(peer, message)
            return
        self._sessions[site].heard = time.monotonic()
        if isinstance(message, Ping):
            if message.answer:
                self._reply(peer, Pong())
        else:
            self._run.receive(site, message)

    def _greet(self, peer: bytes, hello: Hello) -> None:
        known = self._sessions.get(hello.site)
        returns = known is not None and known.token == hello.session
        objection = "" if returns else self._objection(peer, hello)
        if objection:
            self._reply(peer, Aborted(reason=objection))
            return
        if known is not None:
            self._sites.pop(known.peer, None)
        self._sites[peer] = hello.site
        self._sessions[hello.site] = _Session(hello.session, peer, time.monotonic())
        self._run.welcome(hello.site)

    def _objection(self, peer: bytes, hello: Hello) -> str:
        other = self._sites.get(peer, hello.site)
        if other != hello.site:
            return f"this connection is that of site {other!r} already"
        if hello.run not in ("", self._name):
            return (
                f"site {hello.site!r} takes part in run {hello.run}, and this server "
                f"plays run {self._name}; start the site's script again"
            )
        return self._run.objection(hello)

    def _turn_away(self, peer: bytes, message: ToServer | Chunk) -> None:
        """End the wait of a peer that is no site, or is one no more."""
        if isinstance(message, Chunk):
            return  # what was on its way when the connection broke
        _log.info("turned away %s of a peer that said no hello", message)
        reason = (
            "the server does not know this connection: it was given up, or the server "
            "was started again, or another site has taken the same name"
        )
        self._reply(peer, Aborted(reason=reason))

    def _lose_the_silent(self) -> None:
        """Give up the sites that have said nothing for too long."""
        silent = time.monotonic() - self._patience_s
        for site, session in list(self._sessions.items()):
            if session.heard < silent:
                del self._sessions[site]
                self._sites.pop(session.peer, None)
                reason = f"nothing was heard of it for {self._patience_s:g} s"
                if self._run.takes_part(site):
                    self._run.site_left(site, reason, failed=True)

    def _reply(self, peer: bytes, message: ToSite) -> None:
        self._router.send(peer, encode(message))

    def _send(self, site: str, message: ToSite | Chunk) -> None:
        """Send a message; a site whose connection broke will ask for it again."""
        session = self._sessions.get(site)
        if session is not None:
            self._router.send(session.peer, encode(message))

    def _make_spool(self) -> None:
        try:
            self._spool.mkdir(parents=True, mode=0o700)
            self._files.make()
        except OSError as exc:
            msg = f"cannot make the folder {self._spool}: {exc.strerror}"
            raise ConfigurationError(msg) from exc

    def _remove_spool(self) -> None:
        if self._spool_made:  # else it is another server's
            shutil.rmtree(self._spool, ignore_errors=True)
