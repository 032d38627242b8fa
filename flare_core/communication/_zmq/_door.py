"""The server's door: who may come in, and who is shown out.

A thread answers ZeroMQ's questions about keys (ZAP, RFC 27) and hears of connections
that come and go.  ZeroMQ itself has no limit on connections and no way to end one; but
it tells the number of each one's socket, and a socket that is shut down is cleared away
like any other that breaks.
"""

import logging
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import final

import zmq
from zmq.utils import z85

from flare_core.communication._safetensors import Frame
from flare_core.communication._zmq._access import Access, TurnedAway, Why
from flare_core.communication._zmq._polling import Waker, milliseconds, poller_of

_log = logging.getLogger(__name__)
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_ENFORCE_DOMAIN = 93  # no name in pyzmq 27: without it, no answer means yes
_ZAP_DOMAIN = b"flare"
_ZAP_KEY = 6  # the place of the key in a question
_EVENT = struct.Struct("=hi")
_SWEEP_S = 0.05
_SWEEP_CONNECTIONS_PER_S = 2000
_CURVE_BYTES = 33  # of RFC 26 around each frame: its name, a nonce, a seal, flags
_SHORT_FRAME_BYTES, _SHORT_HEAD, _LONG_HEAD = 255, 2, 9  # RFC 37
_TCP_INFO_BYTES_RECEIVED = struct.Struct("128xQ")  # linux/tcp.h, since 4.1


@final
class Connection:
    """One connection, from its first byte on.

    Attributes:
        fd: The number of its socket.
        since: When it came.
        address: Where it came from.
        user: Who it is; empty until it has said something.
        shown_out: Whether it was cut off; it may take a moment to be gone.
        closed: Whether it is gone.
        delivered_bytes: Of the messages that came over it, as they travelled.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.since = self._refilled = time.monotonic()
        self.address = ""
        self.user = ""
        self.shown_out = self.closed = False
        self.delivered_bytes = 0
        self._tokens = 1.0

    @property
    def is_stranger(self) -> bool:
        """Whether it has neither said anything nor been cut off."""
        return not self.user and not self.shown_out

    def delivered(self, frames: Iterable[Frame]) -> None:
        """Count a message's bytes."""
        for frame in frames:
            sealed = len(frame) + _CURVE_BYTES
            long = sealed > _SHORT_FRAME_BYTES
            self.delivered_bytes += sealed + (_LONG_HEAD if long else _SHORT_HEAD)

    def may_send(self, per_s: float) -> bool:
        """Count a message; return whether it is not one too many."""
        now = time.monotonic()
        self._tokens -= (now - self._refilled) * per_s
        self._tokens = max(0.0, self._tokens) + 1.0
        self._refilled = now
        return self._tokens <= 2 * per_s


@final
class Door:
    """Lets in whose key is known, and shows out who takes too much.

    Args:
        context: The router's.
        router: It; not bound yet.
        access: Decides.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.SyncSocket],
        router: zmq.SyncSocket,
        access: Access,
    ) -> None:
        self._access = access
        self._limits = access.limits
        router.curve_server = True
        router.curve_secretkey = access.keys.secret
        router.zap_domain = _ZAP_DOMAIN
        router.setsockopt(_ZAP_ENFORCE_DOMAIN, 1)
        router.maxmsgsize = self._limits.message_bytes
        router.handshake_ivl = milliseconds(self._limits.handshake_s)
        self._questions = context.socket(zmq.REP)
        self._questions.linger = 0
        self._questions.bind(_ZAP_ADDRESS)
        self._monitor = router.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        self._names: set[int | str] = set()
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()
        self._drained = time.monotonic()
        self._swept = 0.0
        self._closing = False
        self._waker = Waker()
        self._poller = poller_of(self._questions, self._monitor, self._waker)
        self._thread = threading.Thread(
            target=self._work, name="flare-door", daemon=True
        )
        self._thread.start()

    def listens_at(self, endpoint: str) -> None:
        """Note an address that the router is bound to."""
        name = endpoint.partition("://")[2]
        _, colon, port = name.rpartition(":")
        self._names.add(int(port) if colon and port.isdecimal() else name)

    def drained(self) -> None:
        """Note that all that has come was received, and what comes is awaited."""
        self._drained = math.inf

    def busy(self) -> None:
        """Note that what comes from now on may lie for a while."""
        self._drained = time.monotonic()

    def meet(self, fd: int, user: str) -> Connection:
        """Return the connection that a first message came over; one too many is cut.

        The door hears of every connection before it is asked about its key, and of its
        end before its number is another's.

        Args:
            fd: The number of its socket.
            user: Who it is.
        """
        with self._lock:
            connection = self._connections.get(fd)
            if connection is None or connection.user:  # these are its last words
                connection = Connection(fd)
                connection.closed = True
            same = [one for one in self._connections.values() if one.user == user]
            connection.user = user
        if not connection.closed and len(same) >= self._limits.connections_per_key:
            self.show_out(connection, "too many connections")
        return connection

    def show_out(self, connection: Connection, why: Why) -> None:
        """Cut a connection off, and say so once."""
        if connection.shown_out:
            return
        self._shut(connection)
        self._tell(connection, why)

    def show_all_out(self, user: str) -> None:
        """Cut off all connections of somebody."""
        with self._lock:
            theirs = [one for one in self._connections.values() if one.user == user]
        for connection in theirs:
            self._shut(connection)

    def close(self, linger: int | None = None) -> None:
        """End; after the router's last word, or its close."""
        del linger  # nothing is ever left to be sent
        self._closing = True
        self._waker.wake()
        self._thread.join()
        self._waker.close()
        self._monitor.close(linger=0)
        self._questions.close(linger=0)

    def _work(self) -> None:
        while not self._closing:
            try:
                self._step()
            except Exception:  # noqa: BLE001 - without this thread nobody gets in
                _log.exception("the door failed; it stays open for who has a key")

    def _step(self) -> None:
        pause_s = max(_SWEEP_S, len(self._connections) / _SWEEP_CONNECTIONS_PER_S)
        timeout_s = pause_s if self._connections else None
        events = dict(self._poller.poll(milliseconds(timeout_s)))
        if self._waker.fileno() in events:
            self._waker.clear()
        if self._monitor in events:
            self._hear()
        if self._questions in events:
            self._answer()
        if time.monotonic() - self._swept > pause_s:
            self._swept = time.monotonic()
            self._sweep()

    def _answer(self) -> None:
        """Say whose key it is."""
        question = self._questions.recv_multipart()
        version, request = question[:2]
        key = z85.encode(question[_ZAP_KEY]).decode()
        user = ""
        try:
            user = self._access.admit(key)
        finally:  # a question without an answer would be the last one
            code, text = (b"200", b"OK") if user else (b"400", b"unknown key")
            answer = [version, request, code, text, user.encode(), b""]
            self._questions.send_multipart(answer)
        if not user:
            address = question[3].decode(errors="replace")
            self._access.turned_away(
                TurnedAway(why="unknown key", address=address, key=key)
            )

    def _hear(self) -> None:
        """Take note of all that came and went."""
        while True:
            try:
                event, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            kind, fd = _EVENT.unpack(event)
            if kind == zmq.EVENT_ACCEPTED:
                self._came(fd)
            else:
                self._went(fd)

    def _came(self, fd: int) -> None:
        with self._lock:
            connection = self._connections[fd] = Connection(fd)
            strangers = [one for one in self._connections.values() if one.is_stranger]
        with _socket(fd) as found:
            if found is not None:
                connection.address = _address(found)
        if len(strangers) > self._limits.strangers:
            self.show_out(strangers[0], "too many strangers")

    def _went(self, fd: int) -> None:
        with self._lock:
            connection = self._connections.pop(fd, None)
        if connection is None:
            return
        connection.closed = True
        if connection.is_stranger:
            self._tell(connection, "ended before it said anything")

    def _sweep(self) -> None:
        """Show out who said nothing in time, or does not come to an end."""
        with self._lock:
            connections = list(self._connections.values())
        latest = min(self._drained, time.monotonic()) - self._limits.handshake_s
        for one in connections:
            if one.is_stranger and one.since < latest:
                self.show_out(one, "said nothing")
            elif (
                not one.shown_out
                and self._unread_bytes(one) > self._limits.unread_bytes
            ):
                self.show_out(one, "message without an end")

    def _unread_bytes(self, connection: Connection) -> int:
        """Return the bytes that came and are in no message that was received."""
        if sys.platform != "linux":
            return 0
        with _socket(connection.fd) as found:
            if found is None or found.family == socket.AF_UNIX:
                return 0
            size = _TCP_INFO_BYTES_RECEIVED.size
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        (received,) = _TCP_INFO_BYTES_RECEIVED.unpack(info)
        return int(received) - connection.delivered_bytes

    def _tell(self, connection: Connection, why: Why) -> None:
        self._access.turned_away(
            TurnedAway(why=why, address=connection.address, user=connection.user)
        )

    def _shut(self, connection: Connection) -> None:
        """Shut its socket down, if that number is still one of ours."""
        connection.shown_out = True
        with _socket(connection.fd) as found, suppress(OSError):
            if found is not None and _own_name(found) in self._names:
                found.shutdown(socket.SHUT_RDWR)


@contextmanager
def _socket(fd: int) -> Generator[socket.socket | None]:
    """Yield a handle of our own on a socket; None if that number is none any more."""
    try:
        copy = os.dup(fd)
    except OSError:
        yield None
        return
    try:
        found = socket.socket(fileno=copy)
    except OSError:  # a file of the server's own by now
        os.close(copy)
        yield None
        return
    with found:
        yield found


def _own_name(found: socket.socket) -> int | str:
    """Return the port, or the path, that a socket listened at."""
    name: tuple[str, int] | str = found.getsockname()
    return name if isinstance(name, str) else name[1]


def _address(found: socket.socket) -> str:
    """Return where a connection comes from."""
    with suppress(OSError):
        name = found.getpeername()
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "this machine"
    return ""
