"""Carries a site's messages on a thread of its own.

So a site that trains for hours answers for itself, and a lost connection is mended,
while the thread that trains knows nothing of it.
"""

import logging
import math
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias, final

from flare_core._errors import (
    AccessDeniedError,
    RunAbortedError,
    ServerUnreachableError,
)
from flare_core.communication._messages import (
    Hello,
    Offer,
    Ping,
    ToServer,
    ToSite,
)
from flare_core.communication._safetensors import Frame
from flare_core.communication._session import Arrived, Session
from flare_core.communication._streams import Incoming
from flare_core.communication._wire import encode
from flare_core.communication._zmq import KeyPair, Secured, ZmqDealer

_log = logging.getLogger(__name__)
_LONG_S = 3600.0
_RECONNECT_S = 0.2
_RECONNECT_MAX_S = 2.5
"""A connection that was cut is mended soon after it can be."""
_FIRST_PATIENCE_S = 60.0
"""A server that was never heard is more likely at another address than away."""

_Order: TypeAlias = Callable[[Session], None]
_Outcome: TypeAlias = tuple[Arrived] | BaseException
_Outcomes: TypeAlias = "queue.SimpleQueue[_Outcome]"
"""Takes the one outcome of an order."""


@final
class Courier:
    """Speaks to one server.  Its methods block, and are for one thread at a time.

    Args:
        address: The server's.
        hello: How the site introduces itself.
        patience_s: Seconds to wait for a server that has gone; for one that was never
            heard, a minute at most.
        secured: The keys, if the server has some.
        learnt: Told of the public key that the server will have soon.
        newest: Asked for the site's own keys once the server does not know the ones
            of before: they may have been changed meanwhile.

    Raises:
        ConfigurationError: If that is no address.
    """

    def __init__(
        self,
        address: str,
        hello: Hello,
        *,
        patience_s: float,
        secured: Secured | None = None,
        learnt: Callable[[str], None] = lambda _: None,
        newest: Callable[[], KeyPair | None] = lambda: None,
    ) -> None:
        self._learnt = learnt
        self._newest = newest
        self._address = address
        self._site = hello.site
        self._patience_s = patience_s
        self._session = Session(hello)
        self._socket = ZmqDealer(address, secured=secured)
        self._orders: deque[tuple[_Order, _Outcomes]] = deque()
        self._outcomes: _Outcomes | None = None
        self._early: _Outcome | None = None
        self._closing = self._lost = self._met = self._denied = False
        self._heard = self._spoke = self._connect_at = time.monotonic()
        self._asked = self._remind_at = self._heard
        self._backoff_s = _RECONNECT_S
        # No secret: sites take turns.  Python's own numbers are the script's.
        self._chance = random.Random()  # noqa: S311
        self._thread = threading.Thread(
            target=self._work, name=f"flare-{hello.site}", daemon=True
        )
        self._thread.start()

    def ask(self, request: ToServer, *wanted: type[ToSite]) -> Arrived:
        """Send a request and return its answer: one of these, or bad news.

        Raises:
            ServerUnreachableError: If nobody answers.
            ProtocolError: If what answers makes no sense.
        """
        return self._do(lambda session: session.ask(request, *wanted))

    def send(
        self, offer: Offer, pieces: Sequence[Frame], *wanted: type[ToSite]
    ) -> Arrived:
        """Send a stream and return what answers it; raises as `ask`.

        Args:
            offer: Announces it.
            pieces: Its bytes; leave them alone until this returns.
            wanted: What answers it.
        """
        return self._do(lambda session: session.send(offer, pieces, *wanted))

    def fetch(self, stream: bytes, incoming: Incoming) -> Arrived:
        """Receive a stream; raises as `ask`.

        Returns:
            None when it is whole, or what came instead: another model, bad news.
        """
        return self._do(lambda session: session.fetch(stream, incoming))

    def close(self, *, abandon: bool = False) -> None:
        """Disconnect.

        Args:
            abandon: Whether to drop what is still to be sent.
        """
        self._closing = True
        self._socket.wake()
        self._thread.join()
        self._socket.close(abandon=abandon)

    def _do(self, order: _Order) -> Arrived:
        outcomes: _Outcomes = queue.SimpleQueue()
        self._orders.append((order, outcomes))
        if self._closing:  # else the thread looks once more, having seen that it is
            raise _closed(self._site)
        self._socket.wake()
        outcome = outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome[0]

    def _work(self) -> None:
        while not self._closing:
            try:
                self._step()
            except BaseException as exc:  # noqa: BLE001 - the caller's thread raises it
                self._session.give_up()
                self._conclude(exc)
        waiting = [outcomes for _, outcomes in self._orders]
        for outcomes in filter(None, [self._outcomes, *waiting]):
            outcomes.put(_closed(self._site))

    def _step(self) -> None:
        while self._orders:
            self._begin(*self._orders.popleft())
        if not self._socket.connected:
            self._reconnect()
        while self._session.outbox:
            self._socket.send(self._session.outbox.popleft())
            self._spoke = time.monotonic()
        frames = self._socket.receive(timeout_s=self._timeout_s())
        if frames is not None:
            self._received(frames)
        elif self._socket.denied:
            self._was_denied()
        elif self._socket.broken:
            self._disconnected()
        else:
            self._keep_alive()

    def _was_denied(self) -> None:
        """Come back with the site's newest keys, if they are others; else it is over.

        Raises:
            AccessDeniedError: If the server does not know these either.
        """
        self._socket.disconnect()
        self._connect_at, self._denied = math.inf, True
        keys = self._newest()
        if keys is None or not self._socket.rekey(keys):
            raise AccessDeniedError(self._site, self._address)
        self._connect_at, self._denied = time.monotonic(), False

    def _begin(self, order: _Order, outcomes: _Outcomes) -> None:
        if self._outcomes is not None:  # who waited was interrupted, or is now
            self._session.give_up()
            self._outcomes.put(_closed(self._site))
        self._outcomes = outcomes
        if self._early is not None:
            early, self._early = self._early, None
            self._conclude(early)
            return
        if self._denied:  # for good: nobody would answer
            self._conclude(AccessDeniedError(self._site, self._address))
            return
        self._heard = self._asked = self._remind_at = time.monotonic()
        order(self._session)

    def _received(self, frames: Sequence[Frame]) -> None:
        self._heard = time.monotonic()
        self._met = True
        if self._lost:
            self._lost = False
            self._backoff_s = _RECONNECT_S
            _log.warning("site %r: %s is back", self._site, self._address)
        answer = self._session.receive(frames)
        while self._session.notices:
            words = self._session.notices.popleft()
            _log.warning("site %r: the server says: %s", self._site, words)
        if self._session.next_key:
            self._renew()
        if answer is not None:
            self._conclude(answer)

    def _renew(self) -> None:
        """The server will have another key: know it on the next connection."""
        key, self._session.next_key = self._session.next_key, ""
        self._socket.renew(key)
        self._learnt(key)

    def _conclude(self, outcome: _Outcome) -> None:
        """Hand the outcome to who waits, or keep it for who asks next."""
        if self._outcomes is None:
            self._early = outcome
        else:
            self._outcomes.put(outcome)
            self._outcomes = None

    @property
    def _awaited(self) -> bool:
        return self._outcomes is not None

    def _disconnected(self) -> None:
        """Drop what is queued: a new connection begins with a hello."""
        self._socket.disconnect()
        self._session.outbox.clear()
        jitter = self._chance.uniform(0.5, 1.5)
        self._connect_at = time.monotonic() + self._backoff_s * jitter
        self._backoff_s = min(2 * self._backoff_s, _RECONNECT_MAX_S)
        if not self._lost and not self._session.parted:
            self._lost = True
            what = "lost the connection" if self._met else "no connection yet"
            _log.warning(
                "site %r: %s to %s; trying again", self._site, what, self._address
            )

    def _reconnect(self) -> None:
        if time.monotonic() >= self._connect_at:
            self._socket.connect()
            self._session.connected()
        else:
            self._session.outbox.clear()  # it will be said again

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if self._awaited and now - self._heard >= self._patience:
            self._session.give_up()
            self._conclude(ServerUnreachableError(self._address, self._patience))
        elif self._socket.connected and now - self._spoke >= self._ping_s:
            self._session.outbox.append(encode(Ping(answer=self._awaited)))
            if self._awaited and now >= self._remind_at:
                self._remind_at = now + 2 * (now - self._asked)
                self._session.remind()

    @property
    def _patience(self) -> float:
        """How long to wait for the server, in seconds."""
        if self._met:
            return self._patience_s
        return min(self._patience_s, _FIRST_PATIENCE_S)

    @property
    def _ping_s(self) -> float:
        """How often to speak: for the server, and to hear of it while waiting."""
        own_s = self._patience / 3 if self._awaited else math.inf
        return min(own_s, self._session.ping_s)

    def _timeout_s(self) -> float:
        """Return the seconds until there is something to do without a message."""
        due = [self._spoke + self._ping_s]
        if not self._socket.connected:
            due = [self._connect_at]
        if self._awaited:
            due.append(self._heard + self._patience)
        return min(max(0.001, min(due) - time.monotonic()), _LONG_S)


def _closed(site: str) -> RunAbortedError:
    return RunAbortedError(f"site {site!r} has left the run")
