"""ZeroMQ sockets: a ROUTER at the server, a DEALER per site.

The only file that imports `zmq`.  A socket is for one thread at a time; only
`ZmqRouter.wake` may be called from another one.
"""

import socket
import weakref
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, final

import zmq

from flare_core._errors import ConfigurationError
from flare_core.communication._frames import Frame

_LINGER_MS = 2_000
"""How long closing waits for what is still to be sent."""
_RECONNECT_MS = 200
_RECONNECT_MAX_MS = 30_000
_HEARTBEAT_MS = 15_000
_HEARTBEAT_TIMEOUT_MS = 45_000


@final
class ZmqRouter:
    """The server's socket: talks to every site by its connection.

    Args:
        address: Where to listen, e.g. ``"tcp://127.0.0.1:0"`` for any free port.

    Raises:
        ConfigurationError: If the address cannot be had.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context[zmq.SyncSocket]()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = _LINGER_MS
        self._socket.router_mandatory = True
        try:
            self._socket.bind(address)
        except zmq.ZMQError as exc:
            self._context.destroy(linger=0)
            msg = f"cannot listen at {address}: {exc}; is another server running there?"
            raise ConfigurationError(msg) from exc
        self.endpoint: str = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._wake_in, self._wake_out = socket.socketpair()
        self._forgotten = _when_forgotten(
            self, self._socket, self._context, self._wake_in, self._wake_out
        )
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_out, zmq.POLLIN)

    def receive(
        self, *, timeout_s: float | None = None
    ) -> tuple[bytes, list[Frame]] | None:
        """Return a peer and the frames it sent; None after `wake` or the timeout.

        Args:
            timeout_s: Seconds to wait; forever if None.
        """
        events = dict(self._poller.poll(_milliseconds(timeout_s)))
        if self._wake_out.fileno() in events:
            self._wake_out.recv(4096)
            return None
        if self._socket not in events:
            return None
        peer, *frames = self._socket.recv_multipart(copy=False)
        return peer.bytes, [frame.buffer for frame in frames]

    def send(self, peer: bytes, frames: Sequence[Frame]) -> bool:
        """Send frames, without copying them.

        Returns:
            Whether the peer is still connected; if not, nothing is sent.
        """
        try:
            self._socket.send_multipart([peer, *frames], copy=False)
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def wake(self) -> None:
        """Make `receive` return; may be called from any thread, after `close` too."""
        with suppress(OSError):  # closed meanwhile
            self._wake_in.send(b"\0")

    def close(self) -> None:
        """Send what is left, for a short while, and close."""
        self._forgotten.detach()
        self._socket.close()
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

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

    Raises:
        ConfigurationError: If that is no address.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context[zmq.SyncSocket]()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = _LINGER_MS
        self._socket.reconnect_ivl = _RECONNECT_MS
        self._socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        self._socket.heartbeat_ivl = _HEARTBEAT_MS
        self._socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        try:
            self._socket.connect(address)
        except zmq.ZMQError as exc:
            self._context.destroy(linger=0)
            msg = f"cannot connect to {address!r}: {exc}"
            raise ConfigurationError(msg) from exc
        self._forgotten = _when_forgotten(self, self._socket, self._context)

    def receive(self, *, timeout_s: float | None = None) -> list[Frame] | None:
        """Return the frames of a message, or None after the timeout.

        Args:
            timeout_s: Seconds to wait; forever if None.
        """
        if not self._socket.poll(_milliseconds(timeout_s)):
            return None
        frames = self._socket.recv_multipart(copy=False)
        return [frame.buffer for frame in frames]

    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames without copying: leave them alone until an answer is in."""
        self._socket.send_multipart(frames, copy=False)

    def close(self, *, abandon: bool = False) -> None:
        """Close the socket.

        Args:
            abandon: Whether to drop what is still to be sent.
        """
        self._forgotten.detach()
        self._socket.close(linger=0 if abandon else None)
        self._context.term()


def _when_forgotten(
    owner: object,
    zmq_socket: zmq.SyncSocket,
    context: zmq.Context[zmq.SyncSocket],
    *pair: socket.socket,
) -> "weakref.finalize[[], object]":
    """Close the sockets of an owner that is collected as garbage.

    PyZMQ 27.3 would wait for ever there: a context that is collected before its own
    socket waits for it to be closed.
    """

    def close() -> None:
        zmq_socket.close(linger=0)
        context.term()
        for end in pair:
            end.close()

    finalizer = weakref.finalize(owner, close)
    finalizer.atexit = False
    return finalizer


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
