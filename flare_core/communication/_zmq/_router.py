"""The server's socket: a ROUTER that talks to every peer by its connection."""

import ipaddress
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, final

import zmq

from flare_core._errors import ConfigurationError
from flare_core.communication._malloc import keep_memory
from flare_core.communication._safetensors import Frame
from flare_core.communication._streams import WINDOW
from flare_core.communication._zmq._access import LARGEST_MESSAGE_BYTES, Access
from flare_core.communication._zmq._door import Connection, Door
from flare_core.communication._zmq._keys import KeyPair
from flare_core.communication._zmq._polling import (
    LINGER_MS,
    Waker,
    buffers,
    close_when_forgotten,
    is_shredded,
    milliseconds,
    next_message,
    poller_of,
)

_HANDSHAKE_MS = 5_000
_LET_GO_S = 2.0
_LOOK_S = 0.005
_BACKLOG = 4096
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 15,
    zmq.TCP_KEEPALIVE_CNT: 4,
}
"""The kernel finds dead peers for nothing; ZeroMQ's own timers cost O(N) a message."""


@final
class Received(NamedTuple):
    """A message at the server.

    Attributes:
        peer: The connection it came over.
        user: Who sent it, by the key that the connection was opened with; empty
            without keys.
        frames: What was sent.
    """

    peer: bytes
    user: str
    frames: list[Frame]


@final
class ZmqRouter:
    """The server's socket: talks to every peer by its connection.

    Args:
        address: Where to listen, e.g. ``"tcp://127.0.0.1:0"`` for any free port.
        access: Decides who is let in, under CURVE.  Without it everybody is, nothing
            is encrypted, and only this machine is listened to.

    Raises:
        ConfigurationError: If the address cannot be had, or must not be without keys.
    """

    def __init__(self, address: str, *, access: Access | None = None) -> None:
        if access is None and not _is_here(address):
            msg = (
                f"cannot listen at {address} without keys: only 127.0.0.1 may be "
                "spoken to in the clear; `flare server init` makes a server with keys"
            )
            raise ConfigurationError(msg)
        keep_memory()
        self._access = access
        self._context = zmq.Context[zmq.SyncSocket]()
        self._socket = self._context.socket(zmq.ROUTER)
        self._set_options()
        self._peers: dict[bytes, Connection] = {}
        self._endpoints: list[str] = []
        self._door = (
            None if access is None else Door(self._context, self._socket, access)
        )
        self._waker = Waker()
        parts = (self._socket,) if self._door is None else (self._socket, self._door)
        self._forgotten = close_when_forgotten(self, self._context, *parts)
        self._poller = poller_of(self._socket, self._waker)
        self.endpoint: str = self.listen(address)

    def listen(self, address: str) -> str:
        """Listen at an address, beside others; return it with its real port.

        Raises:
            ConfigurationError: If it cannot be had; then this is closed.
        """
        self._socket.ipv6 = "[" in address
        try:
            self._socket.bind(address)
        except zmq.ZMQError as exc:
            self.close()
            msg = f"cannot listen at {address}: {exc}; is another server running there?"
            raise ConfigurationError(msg) from exc
        endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._endpoints.append(endpoint)
        if self._door is not None:
            self._door.listens_at(endpoint)
        return endpoint

    def receive(self, *, timeout_s: float | None = None) -> Received | None:
        """Return a message; None after `wake` or the timeout.

        Args:
            timeout_s: Seconds to wait; forever if None.
        """
        message = next_message(self._socket)
        if message is None:
            if self._door is not None:
                self._door.drained()
            events = dict(self._poller.poll(milliseconds(timeout_s)))
            if self._door is not None:
                self._door.busy()
            if self._waker.fileno() in events:
                self._waker.clear()
                return None
            message = next_message(self._socket)
        return None if message is None else self._received(message)

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

    def renew(self, keys: KeyPair) -> None:
        """Be known by other keys to who connects from now on.

        Raises:
            ConfigurationError: If somebody else took the address meanwhile.
        """
        self._socket.curve_secretkey = keys.secret
        endpoints, self._endpoints = self._endpoints, []
        for endpoint in endpoints:
            self._socket.unbind(endpoint)
            _wait_until_free(endpoint)
            self.listen(endpoint)

    def cut_off(self, user: str) -> None:
        """End all connections of somebody; from the receiving thread only."""
        if self._door is not None:
            self._door.show_all_out(user)

    def wake(self) -> None:
        """Make `receive` return; may be called from any thread, after `close` too."""
        self._waker.wake()

    def close(self) -> None:
        """Send what is left, for a short while, and close."""
        self._forgotten.detach()
        if self._door is not None:
            self._socket.disable_monitor()
            self._door.close()
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

    def _set_options(self) -> None:
        self._socket.linger = LINGER_MS
        self._socket.router_mandatory = True
        self._socket.maxmsgsize = LARGEST_MESSAGE_BYTES
        self._socket.handshake_ivl = _HANDSHAKE_MS
        self._socket.backlog = _BACKLOG
        # Bounds what a peer can queue that sends more than it was asked for.
        self._socket.rcvhwm = 2 * WINDOW + 4
        for option, value in _KEEPALIVE.items():
            self._socket.setsockopt(option, value)

    def _received(self, message: list[zmq.Frame]) -> Received | None:
        peer = message[0].bytes
        if self._door is None or self._access is None:
            shredded = is_shredded(message)
            return None if shredded else Received(peer, "", buffers(message[1:]))
        user = str(message[0].get("User-Id"))
        connection = self._peers.get(peer)
        if connection is None:
            self._forget_the_gone()
            connection = self._door.meet(message[0].get(zmq.SRCFD), user)
            self._peers[peer] = connection
        if connection.shown_out:
            return None
        if not self._access.knows(user):  # what was underway when it was cut off
            self._door.show_all_out(user)
            return None
        if is_shredded(message):
            self._door.show_out(connection, "message in too many pieces")
            return None
        frames = buffers(message[1:])
        connection.delivered(frames)
        if not connection.may_send(self._access.limits.messages_per_s):
            self._door.show_out(connection, "too many messages")
            return None
        return Received(peer, user, frames)

    def _forget_the_gone(self) -> None:
        self._peers = {
            peer: connection
            for peer, connection in self._peers.items()
            if not connection.closed
        }


def _wait_until_free(endpoint: str) -> None:
    """Return when ZeroMQ, which does so in its own time, has let an address go."""
    transport, _, name = endpoint.partition("://")
    deadline = time.monotonic() + _LET_GO_S
    while time.monotonic() < deadline:
        if not Path(name).exists() if transport == "ipc" else _can_be_had(name):
            return
        time.sleep(_LOOK_S)


def _can_be_had(name: str) -> bool:
    host, _, port = name.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host.strip("[]"), int(port)))
            one.listen(1)
        except OSError:
            return False
        return True


def _is_here(address: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    transport, _, name = address.partition("://")
    if transport in ("ipc", "inproc"):
        return True
    host = name.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
