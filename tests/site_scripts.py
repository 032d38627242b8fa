"""Scripts of sites, to run in threads beside a server, and a watch on the server."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Queue
from typing import TypeAlias, TypeVar, final

import numpy as np
import numpy.typing as npt
import xxhash

import flare_core as flare
from flare_core.application import Event, Observer, Updated
from flare_core.communication import (
    Chunk,
    Commit,
    Frame,
    Hello,
    Join,
    Offer,
    Outgoing,
    Secured,
    ToServer,
    ToSite,
    Want,
    Welcome,
    ZmqDealer,
    decode_to_site,
    encode,
)

WAIT_S = 20.0
"""Longer than anything takes that goes well."""

Local: TypeAlias = tuple[Mapping[str, npt.ArrayLike], int]
Train: TypeAlias = Callable[[flare.ClientRound], Local]
_E = TypeVar("_E", bound=Event)


def plan(*, rounds: int = 1, sites: int = 2, quorum: int | None = None) -> flare.Plan:
    """Return a plan for so many rounds and sites."""
    selection = flare.Selection(sites=sites, quorum=quorum)
    return flare.Plan(rounds=rounds, selection=selection)


def add(step: float, num_examples: int = 1) -> Train:
    """Return a training that adds a number to every tensor."""

    def train(current: flare.ClientRound) -> Local:
        return {n: w + step for n, w in current.weights.items()}, num_examples

    return train


def wander(site: str) -> Train:
    """Return a training that adds small numbers, others for each site and round."""

    def train(current: flare.ClientRound) -> Local:
        rng = np.random.default_rng([current.number, *site.encode()])
        w = current.weights["w"]
        return {"w": w + np.float32(1e-3) * rng.standard_normal(len(w), np.float32)}, 1

    return train


def play(
    site: Path, initial: Mapping[str, npt.ArrayLike], train: Train
) -> flare.ModelState:
    """Play all rounds as a site's script does; return the final model."""
    with flare.join(initial, site=site) as client:
        for current in client:
            weights, num_examples = train(current)
            current.submit(weights, num_examples=num_examples)
    return client.weights


@final
class Watch:
    """An observer that a test can wait with."""

    def __init__(self) -> None:
        self._events: Queue[Event] = Queue()

    def __call__(self, event: Event) -> None:
        """Note an event; on the server's thread."""
        self._events.put(event)

    def until(self, kind: type[_E]) -> _E:
        """Return the next event of a kind; those before it are forgotten."""
        while True:
            event = self._events.get(timeout=WAIT_S)
            if isinstance(event, kind):
                return event


@final
class Turns:
    """Makes the sites' updates of round 0 arrive in a given order."""

    def __init__(self, order: tuple[str, ...]) -> None:
        self._before = dict(zip(order[1:], order, strict=False))
        self._arrived = {site: threading.Event() for site in order}
        self.observer: Observer = self._note

    def wait(self, site: str) -> None:
        """Wait for the update before that of a site."""
        if site in self._before:
            assert self._arrived[self._before[site]].wait(WAIT_S)

    def _note(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._arrived[event.site].set()


def hello(site: str, *, session: bytes | None = None) -> Hello:
    """Return a greeting, of a session of its own unless one is given."""
    return Hello(site=site, session=session or stream_id())


def stream_id() -> bytes:
    """Return a name that no other session or stream has."""
    return secrets.token_bytes(16)


@final
class Stranger:
    """A peer that says whatever the test wants it to.

    Args:
        endpoint: The server's.
        secured: The peer's keys, if it has some.
    """

    def __init__(self, endpoint: str, *, secured: Secured | None = None) -> None:
        self._socket = ZmqDealer(endpoint, secured=secured)
        self._plan = ""

    def say(self, message: ToServer | Chunk | bytes, *more: Frame) -> None:
        """Send a message, or any bytes, with frames behind it."""
        frames = [message] if isinstance(message, bytes) else encode(message)
        self._socket.send([*frames, *more])

    def hear(self) -> ToSite | Chunk:
        """Wait for the next message."""
        frames = self._socket.receive(timeout_s=WAIT_S)
        assert frames is not None
        message = decode_to_site(frames)
        if isinstance(message, Welcome):
            self._plan = message.plan.fingerprint
        return message

    def hear_out(self) -> None:
        """Drop all that was said so far."""
        while self._socket.receive(timeout_s=0) is not None:
            pass

    def is_cut_off(self) -> bool:
        """Wait until the connection is ended, whatever is said before."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and not self._socket.broken:
            self._socket.receive(timeout_s=WAIT_S)
        return self._socket.broken

    @property
    def denied(self) -> bool:
        """Whether the connection was ended because the key is not known."""
        return self._socket.denied

    def join(self, name: str, layout: flare.Layout) -> None:
        """Say hello, hear the plan, and join."""
        self.say(hello(name))
        self.hear()
        self.propose(layout)

    def propose(self, layout: flare.Layout) -> None:
        """Join under the plan that was heard."""
        self.say(Join(layout=layout, plan=self._plan))

    def hand_in(
        self,
        file: Sequence[Frame],
        *,
        round_number: int = 0,
        num_examples: int = 1,
        stream: bytes | None = None,
        digest: bytes | None = None,
    ) -> ToSite | Chunk:
        """Offer a file, send what is asked for, and return what answers it.

        Args:
            file: In pieces, as `pack` makes them.
            round_number: The round that it answers.
            num_examples: What it weighs.
            stream: Its name; by default a new one.
            digest: What to say of its bytes; by default the truth.
        """
        whole = Outgoing(file)
        offer = Offer(
            stream=stream or stream_id(),
            num_bytes=whole.num_bytes,
            round_number=round_number,
            num_examples=num_examples,
        )
        digest = digest or xxhash.xxh3_128_digest(b"".join(file))
        self.say(offer)
        while isinstance(answer := self.hear(), Want):
            for offset, frames in whole.chunks(answer.start, answer.stop):
                self.say(Chunk(offer.stream, offset, frames))
            if answer.stop == whole.num_bytes:
                self.say(Commit(stream=offer.stream, digest=digest))
        return answer

    def hand_in_at_once(
        self,
        file: Sequence[Frame],
        *,
        round_number: int = 0,
        num_examples: int = 1,
        stream: bytes | None = None,
        digest: bytes | None = None,
    ) -> None:
        """Send a file along with its offer, and wait for nothing; as `hand_in`."""
        short = b"".join(file)
        offer = Offer(
            stream=stream or stream_id(),
            num_bytes=len(short),
            round_number=round_number,
            num_examples=num_examples,
            short=short,
        )
        self.say(offer)
        digest = digest or xxhash.xxh3_128_digest(short)
        self.say(Commit(stream=offer.stream, digest=digest))

    def close(self) -> None:
        """Go."""
        self._socket.close(abandon=True)


def model(*values: float) -> dict[str, npt.ArrayLike]:
    """Return a small float32 model."""
    return {"w": np.asarray(values, np.float32)}
