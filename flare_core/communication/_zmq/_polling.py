"""What both sockets need: waiting, waking, and closing what was forgotten."""

import socket
import weakref
from contextlib import suppress
from typing import Protocol, final

import zmq

from flare_core.communication._safetensors import Frame

_MOST_FRAMES = 1024
"""In a chunk no two small frames follow each other, so there are 260 at most."""
LINGER_MS = 2_000
"""How long closing waits for what is still to be sent."""


@final
class Waker:
    """Something to poll that any thread can make ready."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._forgotten = weakref.finalize(self, _close_both, self._in, self._out)

    def fileno(self) -> int:
        """Return what can be polled."""
        return self._out.fileno()

    def wake(self) -> None:
        """Make it ready; from any thread, and after `close` too."""
        with suppress(OSError):  # closed meanwhile, or full of earlier calls
            self._in.send(b"\0")

    def clear(self) -> None:
        """Make it wait again."""
        self._out.recv(4096)

    def close(self) -> None:
        """Close it."""
        self._forgotten()


def poller_of(*pollable: "zmq.SyncSocket | Waker") -> zmq.Poller:
    """Return what waits until one of these can be read."""
    poller = zmq.Poller()
    for one in pollable:
        poller.register(one, zmq.POLLIN)
    return poller


def next_message(zmq_socket: zmq.SyncSocket) -> list[zmq.Frame] | None:
    """Return the frames of the next message if there is one.

    Of a message of millions of frames, the first ones are kept; it `is_shredded`.
    """
    try:
        frame = zmq_socket.recv(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    frames = [frame]
    while frame.more:  # whole messages arrive, so the rest is there
        frame = zmq_socket.recv(zmq.NOBLOCK, copy=False)
        if len(frames) <= _MOST_FRAMES:
            frames.append(frame)
    return frames


def is_shredded(frames: list[zmq.Frame]) -> bool:
    """Return whether a message has more frames than any that is meant well."""
    return len(frames) > _MOST_FRAMES


def buffers(frames: list[zmq.Frame]) -> list[Frame]:
    """Return what is in them; nothing is copied."""
    return [frame.buffer for frame in frames]


class Closable(Protocol):
    """What can be closed."""

    def close(self, linger: int | None = None) -> None:
        """Close it."""
        ...


def close_when_forgotten(
    owner: object, context: zmq.Context[zmq.SyncSocket], *parts: Closable
) -> "weakref.finalize[[], object]":
    """Close the sockets of an owner that is collected as garbage.

    PyZMQ 27.3 would wait for ever there: a context that is collected before its own
    socket waits for it to be closed.
    """

    def close() -> None:
        for one in parts:
            one.close(linger=0)
        context.term()

    finalizer = weakref.finalize(owner, close)
    finalizer.atexit = False
    return finalizer


def milliseconds(seconds: float | None) -> int | None:
    """Return a timeout as ZeroMQ takes it."""
    return None if seconds is None else int(seconds * 1000)


def _close_both(*ends: socket.socket) -> None:
    for end in ends:
        end.close()
