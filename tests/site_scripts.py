"""Scripts of sites, to run in threads beside a server, and a watch on the server."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue
from typing import TypeAlias, TypeVar, final

import numpy as np
import numpy.typing as npt

import flare_core as flare
from flare_core.application import Event, Observer, Updated
from flare_core.communication import ToServer, ToSite, ZmqDealer, decode_to_site, encode

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


@final
class Stranger:
    """A peer that says whatever the test wants it to."""

    def __init__(self, endpoint: str) -> None:
        self._socket = ZmqDealer(endpoint)

    def say(self, message: ToServer | bytes, *body: bytes | memoryview) -> None:
        """Send a message, or any bytes, with frames behind it."""
        frame = message if isinstance(message, bytes) else encode(message)
        self._socket.send([frame, *body])

    def hear(self) -> ToSite:
        """Wait for the next message."""
        frames = self._socket.receive(timeout_s=WAIT_S)
        assert frames is not None
        return decode_to_site(frames[0])

    def close(self) -> None:
        """Go."""
        self._socket.close(abandon=True)


def model(*values: float) -> dict[str, npt.ArrayLike]:
    """Return a small float32 model."""
    return {"w": np.asarray(values, np.float32)}
