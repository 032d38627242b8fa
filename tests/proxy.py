"""A TCP proxy of the tests' own, between sites and a server, that can break."""

import math
import select
import socket
import threading
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Literal, Self, final

Direction = Literal["up", "down"]
_PIECE_BYTES = 1 << 16
_MOST_KEPT_BYTES = 1 << 20


@final
class Proxy:
    """Passes bytes on, counts them, and cuts a connection where it is told to.

    Args:
        endpoint: The server's, as ``tcp://HOST:PORT``.

    Attributes:
        endpoint: Where sites connect to instead.
        passed: Bytes passed so far, by direction: to the server, or from it.
        num_cuts: Connections that were cut.
        said: What was passed to the server, one after the other.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._server = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.num_cuts = 0
        self.said = b""
        self._cuts: list[tuple[Direction, int]] = []
        self._stalls: list[tuple[int, float]] = []
        self._unplugs: list[tuple[int, float, bool]] = []
        self._silent = False
        self._back_at = -math.inf
        self._bytes_per_s = math.inf
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self, direction: Direction, at: int) -> None:
        """Cut the connection once so many bytes in all have passed in a direction."""
        with self._lock:
            self._cuts.append((direction, at))

    def stall(self, at: int, seconds: float) -> None:
        """Pass nothing on for a while once so many bytes in all were sent up."""
        with self._lock:
            self._stalls.append((at, seconds))

    def unplug(self, at: int, seconds: float, *, silent: bool) -> None:
        """Let nobody through for a while once so many bytes in all were sent up.

        Args:
            at: The bytes.
            seconds: How long.
            silent: Whether nobody is told: connections stay and new ones are made, but
                nothing is heard.  Else they are hung up, and new ones at once.
        """
        with self._lock:
            self._unplugs.append((at, seconds, silent))

    def slow(self, bytes_per_s: float) -> None:
        """Pass on no more than so much, in each direction."""
        self._bytes_per_s = bytes_per_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                site, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=[site], daemon=True).start()

    def _carry(self, site: socket.socket) -> None:
        with ExitStack() as both:
            both.enter_context(site)
            if not self._lets_through():
                return
            try:
                server = both.enter_context(socket.create_connection(self._server))
            except OSError:  # it is not there, and so is its proxy
                return
            ways: dict[socket.socket, tuple[socket.socket, Direction]] = {
                site: (server, "up"),
                server: (site, "down"),
            }
            with suppress(OSError):  # one side hung up
                while not self._over.is_set():
                    ready, _, _ = select.select(list(ways), [], [], 0.1)
                    if not all(self._pass_on(one, *ways[one]) for one in ready):
                        _hang_up(site, server)
                        return

    def _pass_on(
        self, source: socket.socket, target: socket.socket, direction: Direction
    ) -> bool:
        """Pass on what is there; tell whether the connection goes on."""
        piece = source.recv(_PIECE_BYTES)
        with self._lock:
            left = self._until_cut(direction, len(piece))
            self.passed[direction] += len(piece) if left is None else left
            if direction == "up" and len(self.said) < _MOST_KEPT_BYTES:
                self.said += piece
            stalled = [one for one in self._stalls if one[0] <= self.passed["up"]]
            for one in stalled:
                self._stalls.remove(one)
            for at, seconds, silent in list(self._unplugs):
                if at <= self.passed["up"]:
                    self._unplugs.remove((at, seconds, silent))
                    self._back_at, self._silent = time.monotonic() + seconds, silent
        if not self._lets_through():
            return False
        for _, seconds in stalled:
            self._over.wait(seconds)
        self._over.wait(len(piece) / self._bytes_per_s)
        target.sendall(piece if left is None else piece[:left])
        return bool(piece) and left is None

    def _lets_through(self) -> bool:
        """Tell whether a connection goes on; where nobody is told, wait first."""
        left_s = self._back_at - time.monotonic()
        if left_s > 0 and self._silent:
            self._over.wait(left_s)
        return left_s <= 0 or self._silent

    def _until_cut(self, direction: Direction, size: int) -> int | None:
        """Return how many of so many bytes may still pass; None if all may."""
        for cut in self._cuts:
            if cut[0] == direction and cut[1] <= self.passed[direction] + size:
                self._cuts.remove(cut)
                self.num_cuts += 1
                return max(0, cut[1] - self.passed[direction])
        return None


def _hang_up(*connections: socket.socket) -> None:
    """Close such that what was passed on arrives: TCP may drop it after a reset."""
    for connection in connections:
        connection.shutdown(socket.SHUT_WR)
    for connection in connections:
        connection.settimeout(10)
        while connection.recv(_PIECE_BYTES):
            pass
