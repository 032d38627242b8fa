"""A region's server takes part in the runs of the server above, whoever is killed."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import final

import msgspec
import numpy as np
import pytest

import flare_core as flare
from deployed import deployment
from flare_core.communication import RunInfo
from flare_core.management._deployment import check_server
from site_scripts import WAIT_S, Local, Train, play, wander

_INITIAL = {"w": np.zeros(100_000, np.float32)}
_NORTH = ("north.a", "north.b")


def _plan(sites: int, **selection: int) -> flare.Plan:
    tree = {
        "rounds": 3,
        "topology": {"name": "hierarchical"},
        "selection": {"sites": sites, **selection},
    }
    return msgspec.convert(tree, flare.Plan)


@final
class _Regions:
    """A server above, and that of the region north; both are processes.

    Attributes:
        root: The server above, with the site west.
        north: That of the region, with the sites north.a and north.b.
    """

    def __init__(self, stack: ExitStack, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.root = stack.enter_context(deployment(process=True, patience_s=2.0))
        home = self.root.member("north")
        region = {"site": str(home), "sites": len(_NORTH)}
        self.north = stack.enter_context(deployment(process=True, region=region))
        self._homes = {"west": self.root, **dict.fromkeys(_NORTH, self.north)}
        for site, deployed in self._homes.items():
            deployed.member(site)
        self._in_round = threading.Barrier(2)
        self._go_on = threading.Event()

    def start(self, **selection: int) -> list[Future[flare.ModelState]]:
        """Open a run above, and start all sites."""
        self.root.create("demo", _plan(2, **selection))
        self.north.audited("run created", run="demo", user="the server above")
        return [self._pool.submit(self._play, site) for site in self._homes]

    def in_round_one(self) -> None:
        """Wait until north.b trains in round 1, and all others have handed in."""
        self._in_round.wait(WAIT_S)
        self.north.said("demo", "north.a round 1")
        self.root.said("demo", "west round 1")

    def go_on(self) -> None:
        """Let north.b hand in."""
        self._go_on.set()

    def ended(self) -> list[RunInfo]:
        """Wait for the end of the run at both servers."""
        return [one.ended("demo") for one in (self.root, self.north)]

    def _play(self, site: str) -> flare.ModelState:
        file = self._homes[site].site(site, "demo")
        return play(file, _INITIAL, self._trains(site))

    def _trains(self, site: str) -> Train:
        walk = wander(site)

        def train(current: flare.ClientRound) -> Local:
            if (site, current.number) == ("north.b", 1) and not self._go_on.is_set():
                self._in_round.wait(WAIT_S)
                assert self._go_on.wait(WAIT_S)
            return walk(current)

        return train


@pytest.fixture
def regions(pool: ThreadPoolExecutor) -> Iterator[_Regions]:
    with ExitStack() as stack:
        regions = _Regions(stack, pool)
        stack.callback(regions.go_on)
        yield regions


@pytest.fixture(scope="module")
def flat() -> str:
    """The hash of the final model where all have one server."""
    with deployment() as deployed, ThreadPoolExecutor() as pool:
        sites = ("west", *_NORTH)
        for site in sites:
            deployed.member(site)
        deployed.create("demo", _plan(len(sites)))
        for site in sites:
            pool.submit(play, deployed.site(site, "demo"), _INITIAL, wander(site))
        return deployed.ended("demo").blake3


def _equal(finals: Sequence[Future[flare.ModelState]]) -> bool:
    return len({one.result(WAIT_S)["w"].tobytes() for one in finals}) == 1


@pytest.mark.parametrize("killed", ["nobody", "region", "above", "both"])
def test_the_model_is_that_of_one_server(
    killed: str, regions: _Regions, flat: str
) -> None:
    sites = regions.start()
    regions.in_round_one()
    servers = {"region": [regions.north], "above": [regions.root]}
    both = [regions.north, regions.root] if killed == "both" else []
    for server in servers.get(killed, both):
        server.kill()
    for server in servers.get(killed, both):
        server.start()
    regions.go_on()

    assert _equal(sites)
    above, below = regions.ended()
    assert (above.state, above.rounds, above.error) == ("finished", 3, "")
    assert (below.state, below.rounds, below.error) == ("finished", 3, "")
    assert above.blake3 == below.blake3 == flat
    assert all(one.level != "wrong" for one in check_server(regions.root.folder))
    assert all(one.level != "wrong" for one in check_server(regions.north.folder))


def test_a_region_that_was_away_gets_what_the_others_have_made(
    regions: _Regions,
) -> None:
    """Its server is back when the run above is over: its sites end with that model."""
    sites = regions.start(quorum=1)
    regions.in_round_one()
    regions.north.kill()
    above = regions.root.ended("demo")
    assert (above.state, above.rounds) == ("finished", 3)
    regions.north.start()
    regions.go_on()
    assert _equal(sites)
    below = regions.north.ended("demo")
    assert (below.state, below.rounds, below.blake3) == ("finished", 2, above.blake3)


def test_what_is_stopped_above_ends_in_the_region(regions: _Regions) -> None:
    sites = regions.start()
    regions.in_round_one()
    regions.root.end("demo")
    regions.go_on()
    for site in sites:
        with pytest.raises(flare.RunAbortedError, match="stopped by admin"):
            site.result(WAIT_S)
    above, below = regions.ended()
    assert above.state == "stopped"
    assert (below.state, "stopped by admin" in below.error) == ("failed", True)


def test_what_is_stopped_in_a_region_is_said_above(regions: _Regions) -> None:
    sites = regions.start()
    regions.in_round_one()
    regions.north.end("demo")
    regions.root.said("demo", "north left: stopped by admin")
    regions.root.end("demo")
    regions.go_on()
    for site in sites:
        with pytest.raises(flare.RunAbortedError):
            site.result(WAIT_S)
