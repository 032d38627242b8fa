"""Our streams: a site's courier, and a server's mailbox and served files."""

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import final

from flare_core import Plan
from flare_core.application._publication import ServedFile
from flare_core.communication import (
    CHUNK_BYTES,
    Bye,
    Chunk,
    Commit,
    Committed,
    Courier,
    Frame,
    Hello,
    Incoming,
    KeyPair,
    Leave,
    Limits,
    Mailbox,
    Offer,
    Secured,
    Start,
    ToServer,
    ToSite,
    TurnedAway,
    Want,
    Welcome,
    ZmqRouter,
    decode_to_server,
    encode,
    write_file,
)

_SITE = "site"


def serve(pipe: Connection) -> None:
    """Receive and serve until the client leaves."""
    with tempfile.TemporaryDirectory() as folder, ZmqRouter("tcp://127.0.0.1:0") as one:
        pipe.send((one.endpoint, None))
        _Server(one, Path(folder)).run()


def serve_secured(pipe: Connection) -> None:
    """Do the same under CURVE."""
    keys = KeyPair.new()
    with (
        tempfile.TemporaryDirectory() as folder,
        ZmqRouter("tcp://127.0.0.1:0", access=_Everybody(keys)) as one,
    ):
        pipe.send((one.endpoint, Secured(KeyPair.new(), keys.public)))
        _Server(one, Path(folder)).run()


@final
class _Everybody:
    """Lets any key in: what a key costs is measured, not who has one."""

    def __init__(self, keys: KeyPair) -> None:
        self.keys = keys
        self.limits = Limits()

    def admit(self, key: str) -> str:
        """Let it in."""
        return f"site-{key[:8]}"

    def knows(self, user: str) -> bool:
        """Let it stay."""
        return bool(user)

    def turned_away(self, event: TurnedAway) -> None:
        """Say so: nobody should be."""
        raise RuntimeError(event)


@final
class _Server:
    """The part of a server that moves bytes: no round, no averaging."""

    def __init__(self, router: ZmqRouter, folder: Path) -> None:
        self._router = router
        self._folder = folder
        self._mailbox = Mailbox()
        self._file: ServedFile | None = None
        self._number = 0

    def run(self) -> None:
        """Answer until the client leaves."""
        over = False
        while not over:
            received = self._router.receive()
            if received is not None:
                over = self._handle(received.peer, decode_to_server(received.frames))
        self._mailbox.close()

    def _handle(self, peer: bytes, message: ToServer | Chunk) -> bool:
        match message:
            case Hello():
                self._say(peer, Welcome(plan=Plan(rounds=1), run="benchmark"))
            case Offer(round_number=0):
                self._mailbox.open(_SITE, message, self._folder / "upload")
            case Offer():
                self._say(peer, self._start(self._published(message.num_bytes)))
            case Chunk():
                self._mailbox.take(_SITE, message)
            case Commit() if self._mailbox.commit(_SITE, message):
                self._say(peer, Committed(stream=message.stream))
                self._say(peer, self._start(None))
            case Want() if self._file is not None:
                for chunk in self._file.chunks(message):
                    self._router.send(peer, encode(chunk))
            case Leave():
                self._say(peer, Bye())
        for _, want in self._mailbox.wants():
            self._say(peer, want)
        return isinstance(message, Leave)

    def _published(self, num_bytes: int) -> ServedFile:
        if self._file is None or self._file.num_bytes != num_bytes:
            path = self._folder / "download"
            self._file = ServedFile(path, write_file(path, num_bytes, _ones(num_bytes)))
        return self._file

    def _start(self, file: ServedFile | None) -> Start:
        self._number += 1
        return Start(
            round_number=self._number,
            stream=bytes(16) if file is None else file.stream,
            num_bytes=0 if file is None else file.num_bytes,
        )

    def _say(self, peer: bytes, message: ToSite) -> None:
        self._router.send(peer, encode(message))


@final
class Client:
    """Uploads from memory and downloads to it.

    Args:
        address: The server's endpoint, and the keys.
    """

    def __init__(self, address: tuple[str, Secured | None]) -> None:
        endpoint, secured = address
        hello = Hello(site=_SITE, session=secrets.token_bytes(16))
        self._courier = Courier(endpoint, hello, patience_s=60, secured=secured)
        self._courier.ask(hello, Welcome)

    def upload(self, memory: memoryview) -> None:
        """Send the bytes, and wait until they are there."""
        self._courier.send(_offer(0, len(memory)), [memory], Start)

    def download(self, memory: memoryview) -> None:
        """Fill the memory."""

        def write(offset: int, frames: Sequence[Frame]) -> None:
            for frame in frames:
                memory[offset : offset + len(frame)] = frame
                offset += len(frame)

        start = self._courier.ask(_offer(1, len(memory)), Start)
        if not isinstance(start, Start):
            raise TypeError(start)
        self._courier.fetch(start.stream, Incoming(start.num_bytes, write))

    def close(self) -> None:
        """Leave."""
        self._courier.ask(Leave(metrics={}), Bye)
        self._courier.close()


def _ones(num_bytes: int) -> Iterator[bytes]:
    for start in range(0, num_bytes, CHUNK_BYTES):
        yield b"\1" * min(CHUNK_BYTES, num_bytes - start)


def _offer(round_number: int, num_bytes: int) -> Offer:
    return Offer(
        stream=secrets.token_bytes(16), num_bytes=num_bytes, round_number=round_number
    )
