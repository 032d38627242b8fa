"""What a run still has to say once it is over: its final model.

A site may be killed, or cut off, after its last update has counted and before it has
the final model.  It comes back, and the run is over: it is told how it ended, whenever
that is, and its script ends as those of the others did.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import xxhash

from flare_core._plan import Plan
from flare_core.application._publication import ServedFile
from flare_core.communication import (
    Aborted,
    Bye,
    Chunk,
    Join,
    Leave,
    Offer,
    Ping,
    Pong,
    Start,
    ToServer,
    ToSite,
    Want,
    Welcome,
    mapped,
)

_MOST_PEERS = 1024


@final
@dataclass(frozen=True, slots=True)
class Finished:
    """A run that went well.

    Attributes:
        run: Its name.
        plan: What was played.
        rounds: How many there were.
        path: The file of its final model.
    """

    run: str
    plan: Plan
    rounds: int
    path: Path


@final
class Epilogues:
    """Speaks to the sites that come when their run is over; for the server's thread.

    Args:
        send: Answers a connection.
        post: Has something called on the server's thread.
        ping_s: How often a site says that it lives.
    """

    def __init__(
        self,
        send: Callable[[bytes, ToSite | Chunk], object],
        post: Callable[[Callable[[], object]], None],
        *,
        ping_s: float,
    ) -> None:
        self._send = send
        self._post = post
        self._ping_s = ping_s
        self._open: dict[bytes, tuple[Finished, ServedFile]] = {}
        self._callers: dict[str, list[bytes]] = {}

    def begin(self, peer: bytes, finished: Finished) -> None:
        """Welcome a site; the model is read aside, for it may be large."""
        if peer in self._open:
            self._welcome(peer, *self._open[peer])
        elif finished.run in self._callers:
            self._callers[finished.run].append(peer)
        else:
            self._callers[finished.run] = [peer]
            read = partial(self._read, finished)
            threading.Thread(target=read, name=f"flare-{finished.run}").start()

    def hear(self, peer: bytes, message: ToServer | Chunk) -> bool:
        """Answer a site; return whether it is one that came too late."""
        if peer not in self._open:
            return False
        for answer in self._answers(*self._open[peer], message):
            self._send(peer, answer)
        if isinstance(message, Leave):
            del self._open[peer]
        return True

    def _read(self, finished: Finished) -> None:
        found: ServedFile | str
        try:
            stream = xxhash.xxh3_128(mapped(finished.path)).digest()
            found = ServedFile(finished.path, stream)
        except OSError as exc:
            found = (
                f"run {finished.run} is over, and its final model cannot be read: "
                f"{finished.path}: {exc.strerror}; restore it from a backup"
            )
        self._post(partial(self._found, finished, found))

    def _found(self, finished: Finished, found: ServedFile | str) -> None:
        for peer in self._callers.pop(finished.run):
            if isinstance(found, str):
                self._send(peer, Aborted(reason=found))
            else:
                self._welcome(peer, finished, found)

    def _welcome(self, peer: bytes, finished: Finished, file: ServedFile) -> None:
        self._open.pop(peer, None)
        while len(self._open) >= _MOST_PEERS:  # they broke off, and say hello again
            del self._open[next(iter(self._open))]
        self._open[peer] = (finished, file)
        welcome = Welcome(plan=finished.plan, run=finished.run, ping_s=self._ping_s)
        self._send(peer, welcome)

    @staticmethod
    def _answers(
        finished: Finished, file: ServedFile, message: ToServer | Chunk
    ) -> Iterator[ToSite | Chunk]:
        match message:
            case Want() if message.stream == file.stream:
                yield from file.chunks(message)
            case Join() | Offer() | Want():
                yield Start(
                    round_number=finished.rounds,
                    stream=file.stream,
                    num_bytes=file.num_bytes,
                    final=True,
                    short=file.short,
                )
            case Leave():
                yield Bye()
            case Ping() if message.answer:
                yield Pong()
            case _:  # what was on its way before the site knew
                pass
