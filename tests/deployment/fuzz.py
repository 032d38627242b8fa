"""Sends malformed inputs to a server beside which a run is played.

From the folder ``tests``::

    python -m deployment.fuzz --inputs 100000 --seed 1
"""

import argparse
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import final

import msgspec
from rich.console import Console
from rich.table import Table

from deployed import Beside, Deployment, deployment
from deployment.inputs import SiteTalk, asked, mutated, some_request
from flare_core import RequestDeniedError
from flare_core.communication import (
    Answer,
    Ask,
    Control,
    Denied,
    Done,
    Identity,
    ServerStatus,
    Status,
    StopRun,
    WhoAmI,
)
from proxy import Proxy
from site_scripts import Stranger, plan
from tampering import Tampering

_LIMITS = {"messages_per_s": 1e7, "connections_per_key": 1000}
"""The limits have tests of their own; here they would keep inputs out."""
_ALIVE_EVERY = 500
_ANSWERED_EVERY = 20
_MARK = 2**61
"""The number of a request that is meant well."""
_RUN_EVERY = 100
_PLAN = plan(rounds=3, sites=1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What inputs of one kind did.

    Attributes:
        kind: Of the inputs.
        inputs: How many there were.
        seconds: How long they took.
        before_mb: Memory of the server before them.
        after_mb: And after.
    """

    kind: str
    inputs: int
    seconds: float
    before_mb: float
    after_mb: float


@final
class Fuzz:
    """Sends inputs of each kind; after each few hundred the server must be alive.

    Args:
        deployed: The server.
        seed: Says what the inputs are.
    """

    def __init__(self, deployed: Deployment, seed: int) -> None:
        self._deployed = deployed
        self._rng = random.Random(seed)  # noqa: S311 - to be had again
        self._names = iter(range(1_000_000))
        self._admin = deployed.admin()
        deployed.member("eve")
        for role in ("admin", "researcher", "observer"):
            deployed.member(f"eve-{role}", role=role)
        self._recorded = self._record()
        self.kinds: Mapping[str, tuple[float, Callable[[int], None]]] = {
            "raw bytes": (0.10, self._raw),
            "mutated handshakes": (0.13, self._handshakes),
            "handshakes tampered with": (0.02, self._tampered),
            "a site's messages": (0.45, self._messages),
            "requests": (0.30, self._requests),
        }

    def close(self) -> None:
        self._admin.close()

    def run(self, inputs: int) -> Iterator[Account]:
        """Send so many inputs in all."""
        for kind, (share, send) in self.kinds.items():
            send(min(200, int(inputs * share)))  # what is allocated once
            before, began = self._megabytes(), time.monotonic()
            count = int(inputs * share)
            send(count)
            self._alive()
            yield Account(
                kind=kind,
                inputs=count,
                seconds=time.monotonic() - began,
                before_mb=before,
                after_mb=self._megabytes(),
            )

    def _megabytes(self) -> float:
        return self._deployed.rss_bytes / 1e6

    def _alive(self) -> None:
        self._admin.ask(Status(), ServerStatus)

    def _each(self, count: int) -> Iterator[int]:
        for number in range(count):
            yield number
            if number % _ALIVE_EVERY == _ALIVE_EVERY - 1:
                self._alive()

    def _record(self) -> bytes:
        """Return what a member says over TCP to be known, and to be answered."""
        secured = self._deployed.account("eve").secured
        with (
            Proxy(self._deployed.endpoint) as proxy,
            Control(proxy.endpoint, name="eve", secured=secured) as control,
        ):
            control.ask(WhoAmI(), Identity)
            return proxy.said

    def _says(self, *pieces: bytes) -> None:
        """Connect, say it, and go; the server may have hung up before."""
        address = "127.0.0.1", int(self._deployed.endpoint.rpartition(":")[2])
        with socket.create_connection(address, timeout=10) as raw, suppress(OSError):
            raw.setblocking(False)
            for piece in pieces:
                raw.sendall(piece)
                with suppress(BlockingIOError):  # it has not answered yet
                    raw.recv(1 << 12)

    def _raw(self, count: int) -> None:
        for _ in self._each(count):
            self._says(self._rng.randbytes(self._rng.choice((0, 1, 10, 64, 300, 5000))))

    def _handshakes(self, count: int) -> None:
        for _ in self._each(count):
            said = mutated(self._recorded, self._rng)
            cut = self._rng.choice((64, 266, 10, self._rng.randrange(len(said) + 1)))
            self._says(said[:cut], said[cut:])

    def _tampered(self, count: int) -> None:
        """Have a real member connect through somebody who changes bytes on the way."""
        secured = self._deployed.account("eve").secured
        with Tampering(self._deployed.endpoint, self._rng) as tampering:
            for _ in self._each(count):
                with closing(Stranger(tampering.endpoint, secured=secured)) as peer:
                    peer.say(b"\x81\xa4type\xa4Ping")
                    tampering.wait()

    def _messages(self, count: int) -> None:
        talk = SiteTalk("eve", _PLAN.fingerprint, self._rng)
        peer = self._deployed.peer("eve")
        run = ""
        for number in self._each(count):
            if number % _RUN_EVERY == 0:
                peer.close()
                peer = self._deployed.peer("eve")
                if run:
                    self._end(run)
                run = f"target-{next(self._names)}"
                self._deployed.create(run, _PLAN)
            if number % 20 == 0:
                for frames in talk.opening(run):
                    peer.say(*_split(frames))
            for frames in talk.next(run):
                peer.say(*_split(frames))
            if number % _ANSWERED_EVERY == 0:
                _answered(peer)
        _answered(peer)
        peer.close()
        self._end(run)

    def _end(self, run: str) -> None:
        """End a run, if it is not over: each that is open takes memory."""
        with suppress(RequestDeniedError):
            self._admin.ask(StopRun(run=run, reason="the next one begins"), Done)

    def _requests(self, count: int) -> None:
        names = ["eve", "eve-admin", "eve-researcher", "eve-observer"]
        with ExitStack() as stack:
            invited = self._deployed.invitation(f"guest-{next(self._names)}")
            peers = [self._deployed.peer(name) for name in names]
            peers.append(self._deployed.invited_peer(invited))
            for peer in peers:
                stack.enter_context(closing(peer))
            for number in self._each(count):
                peer = self._rng.choice(peers)
                request = some_request(self._rng, f"run-{number % 10}")
                peer.say(*_split(asked(request, number, self._rng)))
                if number % _ANSWERED_EVERY == 0:
                    for one in peers:
                        _answered(one)


def _answered(peer: Stranger) -> None:
    """Wait until the server has dealt with all that a peer has said, and says so."""
    request = msgspec.Raw(msgspec.msgpack.encode(WhoAmI()))
    peer.say(Ask(number=_MARK, request=request))
    while True:
        answer = peer.hear()
        if isinstance(answer, Answer | Denied) and answer.number == _MARK:
            return


def _split(frames: list[bytes]) -> list[bytes]:
    return frames or [b""]


@contextmanager
def fuzzed(seed: int) -> Iterator[tuple[Fuzz, Beside, Deployment]]:
    """Run a server, a run on it, and what sends inputs to it."""
    with (
        deployment(process=True, limits=_LIMITS) as deployed,
        ThreadPoolExecutor() as pool,
        closing(Beside(deployed, pool, patience_s=3600)) as beside,
        closing(Fuzz(deployed, seed)) as fuzz,
    ):
        yield fuzz, beside, deployed


def undisturbed_blake3() -> str:
    """Return the hash of the run beside, if nothing happens."""
    with deployment() as deployed, ThreadPoolExecutor() as pool:
        return Beside(deployed, pool).blake3()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    expected = undisturbed_blake3()
    table = Table("inputs of a kind", "number", "seconds", "MB before", "MB after")
    with fuzzed(args.seed) as (fuzz, beside, _):
        for one in fuzz.run(args.inputs):
            numbers = (one.inputs, one.seconds, one.before_mb, one.after_mb)
            table.add_row(one.kind, *(f"{number:,.0f}" for number in numbers))
        same = beside.blake3() == expected
    Console().print(table)
    Console().print(f"seed {args.seed}; hash of the run beside equal: {same}")


if __name__ == "__main__":
    _main()
