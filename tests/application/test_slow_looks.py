"""To look at an update takes its time; what its site does meanwhile changes nothing."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import final

import msgspec
import numpy as np
import pytest
import xxhash

import flare_core as flare
from flare_core.application._ledger import Ledger
from flare_core.application._run import Run
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    INITIAL,
    SHORT_BYTES,
    Again,
    Chunk,
    Commit,
    Join,
    Leave,
    Offer,
    Start,
    ToSite,
    Want,
    Welcome,
    pack,
)
from site_scripts import plan, stream_id

_LONG = SHORT_BYTES  # floats: too long to go along with the offer
_LATE = flare.RoundPolicy(grace_s=1000, late_weight=0.5)


def _weights(value: float) -> flare.ModelState:
    return flare.ModelState({"w": np.full(_LONG, value, np.float32)})


@final
class _Game:
    """A run of the sites a and b; the worker's results come when the test says so."""

    def __init__(self, folder: Path, policy: flare.RoundPolicy) -> None:
        self._plan = msgspec.structs.replace(plan(rounds=2, quorum=1), round=policy)
        spool = Spool(folder)
        spool.make()
        self._results: deque[Callable[[], object]] = deque()
        self._worker = Worker(self._results.append, num_threads=1)
        self.said: list[tuple[str, ToSite | Chunk]] = []
        self.run = Run(
            Welcome(plan=self._plan, run="demo"),
            spool=spool,
            share=False,
            send=lambda site, message: self.said.append((site, message)),
            worker=self._worker,
            ledger=Ledger(self._worker),
            observer=lambda _: None,
            preflight=False,
            patient=True,
        )
        for site in "ab":
            self.come(site)
        assert self.hand_in("a", 0, INITIAL)
        self.deliver()

    def come(self, site: str) -> None:
        self.run.welcome(site)
        layout = _weights(0).layout
        self.run.receive(site, Join(layout=layout, plan=self._plan.fingerprint))

    def hand_in(
        self, site: str, value: float, round_number: int, weight: int = 1
    ) -> bool:
        """Send an update if it is wanted; return whether it was."""
        commit = self.send(site, value, round_number, weight)
        if commit is not None:
            self.run.receive(site, commit)
        return commit is not None

    def send(
        self, site: str, value: float, round_number: int, weight: int = 1
    ) -> Commit | None:
        """Send an update if it is wanted; return what is to be said at its end."""
        file, stream = b"".join(pack(_weights(value))), stream_id()
        offer = Offer(
            stream=stream,
            num_bytes=len(file),
            round_number=round_number,
            num_examples=weight,
        )
        self.run.receive(site, offer)
        if (site, Want(stream=stream, start=0, stop=len(file))) not in self.said:
            return None
        self.run.receive(site, Chunk(stream, 0, [file]))
        return Commit(stream=stream, digest=xxhash.xxh3_128_digest(file))

    def deliver(self) -> None:
        """Bring all results to the server, and those that follow from them."""
        self._worker._jobs.submit(lambda: None).result()
        while self._results:
            self._results.popleft()()
            self._worker._jobs.submit(lambda: None).result()

    def started(self, site: str) -> list[int]:
        """Return the rounds that a site was told of."""
        starts = [one for to, one in self.said if to == site and isinstance(one, Start)]
        return [one.round_number for one in starts]

    def model(self) -> float:
        """Return the one value of the global model."""
        assert self.run._rounds._model is not None
        values = set(self.run._rounds._model.weights["w"].tolist())
        assert len(values) == 1
        return float(values.pop())

    def close(self) -> None:
        self._worker.close()
        self.run.close()


@pytest.fixture
def policy() -> flare.RoundPolicy:
    return flare.RoundPolicy(grace_s=1000)


@pytest.fixture
def game(tmp_path: Path, policy: flare.RoundPolicy) -> Iterator[_Game]:
    with closing(_Game(tmp_path, policy)) as game:
        yield game


def test_an_update_that_is_looked_at_cannot_be_written_over(game: _Game) -> None:
    assert game.hand_in("b", 3, 0)
    game.run.receive("b", Leave(metrics={}, reason="to come back"))
    game.come("b")

    assert not game.hand_in("b", math.nan, 0)

    game.deliver()
    assert ("b", Again()) in game.said  # what it has offered may be wanted now
    assert game.hand_in("a", 1, 0)
    game.deliver()
    assert game.model() == 2


def test_an_update_that_is_whole_when_its_round_is_over_bars_no_later_one(
    game: _Game,
) -> None:
    commit = game.send("b", 3, 0)
    assert commit is not None
    assert game.hand_in("a", 1, 0)
    game.deliver()
    game.run.tick()
    game.deliver()
    assert game.started("b") == [0, 1]

    game.run.receive("b", commit)
    game.deliver()

    assert game.hand_in("b", 5, 1)
    assert game.hand_in("a", 1, 1)
    game.deliver()
    assert game.model() == 3


@pytest.mark.parametrize("policy", [_LATE])
def test_an_update_that_was_looked_at_while_its_round_ended_counts_as_a_late_one(
    game: _Game,
) -> None:
    assert game.hand_in("a", 1, 0, 4)
    game.deliver()
    game.run.tick()  # the next model is being made
    assert game.hand_in("b", 8, 0, 8)
    game.deliver()
    assert game.started("b") == [0]

    assert game.hand_in("a", 2, 1, 4)
    game.deliver()

    # a alone makes 1; the step of b, from 0 to 8, is one from 1 to 9, and weighs half
    assert game.model() == (4 * 2 + 4 * 9) / 8
