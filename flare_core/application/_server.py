"""The server's loop: takes messages in, plays the rounds, sends models out."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import final

import msgspec

from flare_core._errors import ProtocolError
from flare_core._plan import Plan, plan_from
from flare_core.application._events import Observer, Result, RunEnded, RunOpened
from flare_core.application._run import Run
from flare_core.communication import (
    Aborted,
    Frame,
    Hello,
    Ping,
    Pong,
    ToServer,
    ToSite,
    ZmqRouter,
    decode_to_server,
    encode,
)

_log = logging.getLogger(__name__)


@final
class Server:
    """Plays one run with the sites that connect to it.

    Args:
        plan: What to play.
        address: Where to listen; port 0 takes any free one.
        observer: Told of everything that happens, on the server's thread.
        preflight: Whether to compare the sites only, and train nothing.

    Raises:
        ConfigurationError: If the plan breaks a rule or names a strategy that is not
            installed, or the address cannot be had.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        address: str = "tcp://127.0.0.1:0",
        observer: Observer = lambda _: None,
        preflight: bool = False,
    ) -> None:
        self._observer = observer
        self._sites: dict[bytes, str] = {}
        self._peers: dict[str, bytes] = {}
        self._orders: deque[Callable[[], None]] = deque()
        # what Python made of it may break rules that a file could not
        self._plan = plan_from(msgspec.to_builtins(plan), source="plan")
        self._run = Run(self._plan, self._send, observer, preflight=preflight)
        self._router = ZmqRouter(address)

    @property
    def endpoint(self) -> str:
        """The address that sites connect to, with its real port."""
        return self._router.endpoint

    def run(self) -> Result:
        """Play all rounds; returns when the last site has left, or the run aborted."""
        try:
            self._observer(RunOpened(self._plan, self.endpoint))
            while not self._run.over:
                received = self._router.receive()
                while self._orders:
                    self._orders.popleft()()
                if received is not None and not self._run.over:
                    self._handle(*received)
            self._observer(RunEnded(self._run.result))
        except BaseException as exc:
            self._run.abort(f"the server failed: {type(exc).__name__}: {exc}")
            raise
        finally:
            self._router.close()
        return self._run.result

    def lose(self, site: str, reason: str) -> None:
        """Tell the server that a site will not come back; from any thread."""
        self._order(partial(self._run.site_left, site, reason, failed=True))

    def stop(self, reason: str) -> None:
        """Abort the run; from any thread."""
        self._order(partial(self._run.abort, reason))

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._router.wake()

    def _handle(self, peer: bytes, frames: list[Frame]) -> None:
        try:
            message = decode_to_server(frames[0] if frames else b"")
        except ProtocolError as exc:
            _log.info("ignored %d frames from a stranger: %s", len(frames), exc)
            return
        if isinstance(message, Hello):
            self._greet(peer, message)
        elif (site := self._sites.get(peer)) is None:
            self._turn_away(peer, message)
        elif isinstance(message, Ping):
            self._router.send(peer, [encode(Pong())])
        else:
            num_bytes = sum(len(frame) for frame in frames)
            self._run.receive(site, message, frames[1:], num_bytes)

    def _greet(self, peer: bytes, hello: Hello) -> None:
        objection = self._run.objection(hello)
        if objection:
            self._router.send(peer, [encode(Aborted(reason=objection))])
            return
        self._sites.pop(self._peers.get(hello.site, b""), None)
        self._sites[peer] = hello.site
        self._peers[hello.site] = peer
        self._run.welcome(hello.site)

    def _turn_away(self, peer: bytes, message: ToServer) -> None:
        """End the wait of a peer that is no site, or is one no more."""
        _log.info("turned away %s of a peer that said no hello", message)
        reason = (
            "the server does not know this connection: it broke, or the server was "
            "started again, or another site has taken the same name"
        )
        self._router.send(peer, [encode(Aborted(reason=reason))])

    def _send(self, site: str, message: ToSite, body: list[Frame]) -> int:
        """Send a message to a site and return its bytes."""
        frames = [encode(message), *body]
        if not self._router.send(self._peers[site], frames):
            self.lose(site, "its connection is gone")
        return sum(len(frame) for frame in frames)
