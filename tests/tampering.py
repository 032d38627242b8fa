"""A TCP proxy of the tests' own that changes a byte of each connection on its way."""

import random
import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self, final

_PIECE_BYTES = 1 << 16
_FIRST_BYTES = 900
"""Greeting, handshake and a first message are about as long."""


@final
class Tampering:
    """Carries one connection after the other, and changes one byte of each.

    Args:
        endpoint: The server's, as ``tcp://HOST:PORT``.
        rng: Says which, and into what.

    Attributes:
        endpoint: Where to connect to instead.
    """

    def __init__(self, endpoint: str, rng: random.Random) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._server = (host, int(port))
        self._rng = rng
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._carried = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until a connection has ended, or has nothing more to say."""
        self._carried.acquire(timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _work(self) -> None:
        with suppress(OSError):  # closed
            while True:
                site, _ = self._listening.accept()
                with suppress(OSError):
                    self._carry(site)
                self._carried.release()

    def _carry(self, site: socket.socket) -> None:
        up = self._rng.random() < 0.8
        left = self._rng.randrange(_FIRST_BYTES)
        with site, socket.create_connection(self._server) as server:
            while ready := select.select([site, server], [], [], 0.02)[0]:
                for source in ready:
                    piece = bytearray(source.recv(_PIECE_BYTES))
                    if not piece:
                        return
                    if (source is site) is up:
                        if left < len(piece):
                            piece[left] ^= 1 << self._rng.randrange(8)
                            left = 1 << 60
                        left -= len(piece)
                    (server if source is site else site).sendall(piece)
