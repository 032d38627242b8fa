"""A site's socket: a DEALER that connects outward and talks to the one server."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import final

import zmq

from flare_core._errors import ConfigurationError
from flare_core.communication._malloc import keep_memory
from flare_core.communication._safetensors import Frame
from flare_core.communication._zmq._access import LARGEST_MESSAGE_BYTES
from flare_core.communication._zmq._keys import KeyPair, Secured, learnt
from flare_core.communication._zmq._polling import (
    LINGER_MS,
    Waker,
    buffers,
    close_when_forgotten,
    milliseconds,
    next_message,
    poller_of,
)

_CONNECT_TIMEOUT_MS = 10_000
_RECONNECT_MS = 30_000
"""Late enough never to happen: ZeroMQ would go on with what was queued, on a connection
that began without a hello.  Never, which it also knows, drops what has arrived."""
_HEARTBEAT_MS = 10_000
_HEARTBEAT_TIMEOUT_MS = 20_000
_EVENT = struct.Struct("=hi")


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
        self._waker = Waker()
        self._line: _Line | None = _Line(address, self._waker, secured)

    @property
    def connected(self) -> bool:
        """Whether it has a connection, or tries to get one."""
        return self._line is not None

    @property
    def broken(self) -> bool:
        """Whether the connection is lost; known once all it brought was received."""
        return self._line is not None and self._line.broken

    @property
    def denied(self) -> bool:
        """Whether it was lost because the server does not know this key."""
        return self._line is not None and self._line.denied

    def receive(self, *, timeout_s: float | None = None) -> list[Frame] | None:
        """Return the frames of a message; None after `wake`, a break or the timeout.

        Args:
            timeout_s: Seconds to wait; forever if None.
        """
        if self._line is not None:
            return self._line.receive(timeout_s)
        events = dict(poller_of(self._waker).poll(milliseconds(timeout_s)))
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

    def renew(self, key: str) -> None:
        """Take note of the key that the server will have soon."""
        self._secured = learnt(self._secured, key)

    def rekey(self, keys: KeyPair) -> bool:
        """Be known by these keys on the next connection; return whether they differ."""
        if self._secured is None or self._secured.keys == keys:
            return False
        self._secured = replace(self._secured, keys=keys)
        return True

    @property
    def server_key(self) -> bytes:
        """The server's public key, as far as is known; empty without keys."""
        return b"" if self._secured is None else self._secured.server

    def disconnect(self) -> None:
        """Drop the connection, and what was queued for it."""
        if self._line is not None:
            unknown = not self._line.heard and not self._line.denied
            if unknown and self._secured is not None:
                self._secured = self._secured.swapped
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
            self._line.close(linger_ms=0 if abandon else LINGER_MS)
            self._line = None
        self._waker.close()


@final
class _Line:
    """A DEALER with one connection, and the word of when it breaks."""

    def __init__(self, address: str, waker: Waker, secured: Secured | None) -> None:
        keep_memory()
        self._context = zmq.Context[zmq.SyncSocket]()
        self._socket = self._context.socket(zmq.DEALER)
        if secured is not None:
            self._socket.curve_publickey = secured.keys.public
            self._socket.curve_secretkey = secured.keys.secret
            self._socket.curve_serverkey = secured.server
        self._socket.linger = LINGER_MS
        self._socket.maxmsgsize = LARGEST_MESSAGE_BYTES
        self._socket.connect_timeout = _CONNECT_TIMEOUT_MS
        self._socket.reconnect_ivl = _RECONNECT_MS
        self._socket.heartbeat_ivl = _HEARTBEAT_MS
        self._socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self._socket.ipv6 = "[" in address
        try:
            self._socket.connect(address)
        except zmq.ZMQError as exc:
            self._monitor.close(linger=0)
            self._context.destroy(linger=0)
            msg = f"cannot connect to {address!r}: {exc}"
            raise ConfigurationError(msg) from exc
        self._waker = waker
        self._forgotten = close_when_forgotten(
            self, self._context, self._socket, self._monitor
        )
        self._poller = poller_of(self._socket, waker, self._monitor)
        self.broken = self.denied = self.heard = False

    def receive(self, timeout_s: float | None) -> list[Frame] | None:
        received = next_message(self._socket)
        if received is None and not self.broken:  # of which nobody would tell again
            events = dict(self._poller.poll(milliseconds(timeout_s)))
            if self._waker.fileno() in events:
                self._waker.clear()
            if self._monitor in events:
                self._hear()
            received = next_message(self._socket)  # before the word of the break
        if received is None:
            return None
        self.heard = True
        return buffers(received)

    def send(self, frames: Sequence[Frame]) -> None:
        with suppress(zmq.Again):  # not connected for long: all is asked for again
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _hear(self) -> None:
        """Take note of how the connection ended."""
        event, _ = self._monitor.recv_multipart()
        kind, _ = _EVENT.unpack(event)
        self.denied |= kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        self.broken = True

    def close(self, *, linger_ms: int) -> None:
        self._forgotten.detach()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)
        self._context.term()
