"""Asks a server for what is no part of a run, and waits for the answer."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, final

import msgspec

from flare_core._errors import (
    AccessDeniedError,
    ProtocolError,
    RequestDeniedError,
    ServerUnreachableError,
)
from flare_core.communication._desk_messages import Answer, Ask, Denied
from flare_core.communication._requests import Request
from flare_core.communication._safetensors import Frame
from flare_core.communication._wire import decode_to_site, encode
from flare_core.communication._zmq import Secured, ZmqDealer

_AGAIN_S = 1.0
_Reply = TypeVar("_Reply")


@final
class Control:
    """A line to a server's desk, for one thread.

    Args:
        address: The server's.
        name: Who asks, for the errors.
        secured: His keys.
        learnt: Told of the public key that the server will have soon.
        patience_s: Seconds to wait for a server that is not there.

    Attributes:
        lost: Whether the connection broke, and nothing was heard since.

    Raises:
        ConfigurationError: If that is no address.
    """

    def __init__(
        self,
        address: str,
        *,
        name: str,
        secured: Secured,
        learnt: Callable[[str], None] = lambda _: None,
        patience_s: float = 10.0,
    ) -> None:
        self._learnt = learnt
        self._address = address
        self._name = name
        self._patience_s = patience_s
        self._number = 0
        self._asked: Sequence[Frame] = ()
        self.lost = False
        self._socket = ZmqDealer(address, secured=secured)

    def ask(
        self, request: Request, reply: type[_Reply], *, wait_s: float | None = None
    ) -> _Reply:
        """Return the answer.

        What was asked is asked again after a break, so it may be done twice.

        Args:
            request: What is wanted.
            reply: What answers it.
            wait_s: Seconds that the answer may take; the line's patience if None.

        Raises:
            RequestDeniedError: If the server will not do it.
            AccessDeniedError: If the server does not know the key.
            ServerUnreachableError: If nobody answers in time.
            ProtocolError: If what answers makes no sense.
        """
        deadline = time.monotonic() + (self._patience_s if wait_s is None else wait_s)
        self.send(request)
        while time.monotonic() < deadline:
            answer = self.receive(reply, timeout_s=_AGAIN_S)
            if answer is not None:
                return answer
        raise ServerUnreachableError(self._address, self._patience_s)

    def send(self, request: Request) -> None:
        """Ask, and leave the answer to `receive`; forget what was asked before."""
        self._number += 1
        ask = Ask(
            number=self._number, request=msgspec.Raw(msgspec.msgpack.encode(request))
        )
        self._asked = encode(ask)
        self._socket.send(self._asked)

    def receive(self, reply: type[_Reply], *, timeout_s: float) -> _Reply | None:
        """Return the answer to what was asked last; None if there is none in time.

        After a break it is asked again.

        Raises:
            RequestDeniedError: If the server will not do it.
            AccessDeniedError: If the server does not know the key.
            ProtocolError: If what answers makes no sense.
        """
        frames = self._socket.receive(timeout_s=timeout_s)
        if frames is not None:
            self.lost = False
            message = self._received(frames)
            if isinstance(message, Answer):
                return _decoded(message, reply)
            if isinstance(message, Denied):
                raise RequestDeniedError(message.reason)
        elif self._socket.denied:
            raise AccessDeniedError(self._name, self._address)
        elif self._socket.broken:
            self.lost = True
            self._socket.disconnect()
            self._socket.receive(timeout_s=_AGAIN_S / 4)
            self._socket.connect()
            self._socket.send(self._asked)
        return None

    def wake(self) -> None:
        """Make `receive` return; from any thread, and after `close` too."""
        self._socket.wake()

    def _received(self, frames: Sequence[Frame]) -> Answer | Denied | None:
        """Return the answer to the last request, if it is one."""
        message = decode_to_site(frames)
        if not isinstance(message, Answer | Denied) or message.number != self._number:
            return None
        if message.renew:
            self._socket.renew(message.renew)
            self._learnt(message.renew)
        return message

    def close(self) -> None:
        """Close the line."""
        self._socket.close(abandon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _decoded(answer: Answer, reply: type[_Reply]) -> _Reply:
    try:
        return msgspec.msgpack.decode(answer.reply, type=reply)
    except msgspec.DecodeError as exc:
        msg = f"the server's answer makes no sense: {exc}; is it of another version?"
        raise ProtocolError(msg) from exc
