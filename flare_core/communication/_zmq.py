"""ZeroMQ sockets: a ROUTER at the server, a DEALER per site.

The only file that imports `zmq`.  A socket is for one thread at a time; only `wake` may
be called from another one.  No frame is longer than a chunk, at either end: a peer that
announces more is cut off before anything is allocated for it.
"""

import socket
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, final

import zmq

from flare_core._errors import ConfigurationError
from flare_core.communication._malloc import keep_memory
from flare_core.communication._safetensors import Frame
from flare_core.communication._streams import CHUNK_BYTES, WINDOW

_MAX_MESSAGE_BYTES = CHUNK_BYTES + 4096
_LINGER_MS = 2_000
"""How long closing waits for what is still to be sent."""
_HANDSHAKE_MS = 5_000
_CONNECT_TIMEOUT_MS = 10_000
_RECONNECT_MS = 200
_RECONNECT_MAX_MS = 30_000
_HEARTBEAT_MS = 15_000
_HEARTBEAT_TIMEOUT_MS = 45_000
_BACKLOG = 4096
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 15,
    zmq.TCP_KEEPALIVE_CNT: 4,
}
"""The kernel finds dead peers for nothing; ZeroMQ's own timers cost O(N) a message."""


@final
@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, in Z85.

    Attributes:
        public: Known to others.
        secret: Known to nobody else.
    """

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Self:
        """Return a fresh one."""
        return cls(*zmq.curve_keypair())


@final
@dataclass(frozen=True, slots=True)
class Secured:
    """What a site needs to speak to a server under CURVE.

    Attributes:
        keys: The site's own.
        server: The server's public key.
    """

    keys: KeyPair
    server: bytes


@final
class ZmqRouter:
    """The server's socket: talks to every site by its connection.

    Args:
        address: Where to listen, e.g. ``"tcp://127.0.0.1:0"`` for any free port.
        keys: Encrypts and proves who the server is; every site's key is let in.

    Raises:
        ConfigurationError: If the address cannot be had.
    """

    def __init__(self, address: str, *, keys: KeyPair | None = None) -> None:
        keep_memory()
        self._context = zmq.Context[zmq.SyncSocket]()
        self._socket = self._context.socket(zmq.ROUTER)
        if keys is not None:
            self._socket.curve_server = True
            self._socket.curve_secretkey = keys.secret
        self._socket.linger = _LINGER_MS
        self._socket.router_mandatory = True
        self._socket.maxmsgsize = _MAX_MESSAGE_BYTES
        self._socket.handshake_ivl = _HANDSHAKE_MS
        self._socket.backlog = _BACKLOG
        # Bounds what a peer can queue that sends more than it was asked for.
        self._socket.rcvhwm = 2 * WINDOW + 4
        for option, value in _KEEPALIVE.items():
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as exc:
            self._context.destroy(linger=0)
            msg = f"cannot listen at {address}: {exc}; is another server running there?"
            raise ConfigurationError(msg) from exc
        self.endpoint: str = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._waker = _Waker()
        self._forgotten = _when_forgotten(self, self._context, self._socket)
        self._poller = _poller(self._socket, self._waker)

    def receive(
        self, *, timeout_s: float | None = None
    ) -> tuple[bytes, list[Frame]] | None:
        """Return a peer and the frames it sent; None after `wake` or the timeout.

        Args:
            timeout_s: Seconds to wait; forever if None.
        """
        received = _received(self._socket)
        if received is None:
            events = dict(self._poller.poll(_milliseconds(timeout_s)))
            if self._waker.fileno() in events:
                self._waker.clear()
                return None
            received = _received(self._socket)
        if received is None:
            return None
        peer, *frames = received
        return bytes(peer), frames

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        """Send frames, without copying them.

        Returns:
            Whether the peer is still connected; if not, nothing is sent.
        """
        try:
            self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:  # it does not read: what it misses it will ask for again
            return True
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def wake(self) -> None:
        """Make `receive` return; may be called from any thread, after `close` too."""
        self._waker.wake()

    def close(self) -> None:
        """Send what is left, for a short while, and close."""
        self._forgotten.detach()
        self._socket.close()
        self._context.term()
        self._waker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@final
class ZmqDealer:
    """A site's socket: connects outward and talks to the one server.

    Args:
        address: The server's, e.g. ``"tcp://10.0.0.1:5555"``.
        secured: The keys, if the server has some.

    Raises:
        ConfigurationError: If that is no address.
    """

    def __init__(self, address: str, *, secured: Secured | None = None) -> None:
        self._address = address
        self._secured = secured
        self._waker = _Waker()
        self._line: _Line | None = _Line(address, self._waker, secured)

    @property
    def connected(self) -> bool:
        """Whether it has a connection, or tries to get one."""
        return self._line is not None

    @property
    def broken(self) -> bool:
        """Whether the connection is lost; known once all it brought was received."""
        return self._line is not None and self._line.broken

    def receive(self, *, timeout_s: float | None = None) -> list[Frame] | None:
        """Return the frames of a message; None after `wake`, a break or the timeout.

        Args:
            timeout_s: Seconds to wait; forever if None.
        """
        if self._line is not None:
            return self._line.receive(timeout_s)
        events = dict(_poller(self._waker).poll(_milliseconds(timeout_s)))
        if events:
            self._waker.clear()
        return None

    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames without copying: leave them alone until an answer is in.

        Without a connection nothing is sent.
        """
        if self._line is not None:
            self._line.send(frames)

    def wake(self) -> None:
        """Make `receive` return; may be called from any thread, after `close` too."""
        self._waker.wake()

    def disconnect(self) -> None:
        """Drop the connection, and what was queued for it."""
        if self._line is not None:
            self._line.close(linger_ms=0)
            self._line = None

    def connect(self) -> None:
        """Make a new connection."""
        self._line = _Line(self._address, self._waker, self._secured)

    def close(self, *, abandon: bool = False) -> None:
        """Close the socket.

        Args:
            abandon: Whether to drop what is still to be sent.
        """
        if self._line is not None:
            self._line.close(linger_ms=0 if abandon else _LINGER_MS)
            self._line = None
        self._waker.close()


@final
class _Line:
    """A DEALER with one connection, and the word of when it breaks."""

    def __init__(self, address: str, waker: "_Waker", secured: Secured | None) -> None:
        keep_memory()
        self._context = zmq.Context[zmq.SyncSocket]()
        self._socket = self._context.socket(zmq.DEALER)
        if secured is not None:
            self._socket.curve_publickey = secured.keys.public
            self._socket.curve_secretkey = secured.keys.secret
            self._socket.curve_serverkey = secured.server
        self._socket.linger = _LINGER_MS
        self._socket.maxmsgsize = _MAX_MESSAGE_BYTES
        self._socket.connect_timeout = _CONNECT_TIMEOUT_MS
        self._socket.reconnect_ivl = _RECONNECT_MS
        self._socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        self._socket.heartbeat_ivl = _HEARTBEAT_MS
        self._socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as exc:
            self._monitor.close(linger=0)
            self._context.destroy(linger=0)
            msg = f"cannot connect to {address!r}: {exc}"
            raise ConfigurationError(msg) from exc
        self._waker = waker
        self._forgotten = _when_forgotten(
            self, self._context, self._socket, self._monitor
        )
        self._poller = _poller(self._socket, waker, self._monitor)
        self.broken = False

    def receive(self, timeout_s: float | None) -> list[Frame] | None:
        received = _received(self._socket)
        if received is None:
            events = dict(self._poller.poll(_milliseconds(timeout_s)))
            if self._waker.fileno() in events:
                self._waker.clear()
            self.broken = self._monitor in events
            received = _received(self._socket)  # before the word of the break
        return received

    def send(self, frames: Sequence[Frame]) -> None:
        with suppress(zmq.Again):  # not connected for long: all is asked for again
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def close(self, *, linger_ms: int) -> None:
        self._forgotten.detach()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)
        self._context.term()


@final
class _Waker:
    """Something to poll that any thread can make ready."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._forgotten = weakref.finalize(self, _close_both, self._in, self._out)

    def fileno(self) -> int:
        return self._out.fileno()

    def wake(self) -> None:
        with suppress(OSError):  # closed meanwhile, or full of earlier calls
            self._in.send(b"\0")

    def clear(self) -> None:
        self._out.recv(4096)

    def close(self) -> None:
        self._forgotten()


def _close_both(*ends: socket.socket) -> None:
    for end in ends:
        end.close()


def _poller(*pollable: "zmq.SyncSocket | _Waker") -> zmq.Poller:
    poller = zmq.Poller()
    for one in pollable:
        poller.register(one, zmq.POLLIN)
    return poller


def _received(zmq_socket: zmq.SyncSocket) -> list[Frame] | None:
    """Return the frames of the next message if there is one."""
    try:
        frames = zmq_socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return [frame.buffer for frame in frames]


def _when_forgotten(
    owner: object, context: zmq.Context[zmq.SyncSocket], *sockets: zmq.SyncSocket
) -> "weakref.finalize[[], object]":
    """Close the sockets of an owner that is collected as garbage.

    PyZMQ 27.3 would wait for ever there: a context that is collected before its own
    socket waits for it to be closed.
    """

    def close() -> None:
        for one in sockets:
            one.close(linger=0)
        context.term()

    finalizer = weakref.finalize(owner, close)
    finalizer.atexit = False
    return finalizer


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
