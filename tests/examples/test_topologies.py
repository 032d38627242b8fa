"""An example in every topology, as processes, one of which is killed on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

import msgspec
import pytest
import torch

import flare_core as flare
from deployed import Deployment, deployment
from flare_core.communication import GroupKey

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_heart.py"
COMMAND = Path(sys.executable).with_name("flare")
OURS = {"FLARE_HOME", "FLARE_SITE", "FLARE_RUN", "PYTHONSAFEPATH"}
SITES = ("north.a", "north.b", "south", "west")
ROUNDS = 5
END_S = 120
pytestmark = pytest.mark.timeout(600)  # a framework is imported by four processes

TOPOLOGIES: Mapping[str, Mapping[str, object]] = {
    "star": {},
    "cyclic": {},
    "async": {"buffer": 2},
    "hierarchical": {},
    "swarm": {},
}


def _plan(topology: str, sites: int) -> flare.Plan:
    tree = {
        "rounds": ROUNDS,
        "topology": {"name": topology, **TOPOLOGIES[topology]},
        "selection": {"sites": sites},
        "schedule": {"every_n_steps": 3},
    }
    return msgspec.convert(tree, flare.Plan)


@final
class Sites:
    """The example at four hospitals, each a process with a folder of its own."""

    def __init__(self, homes: Mapping[str, Deployment]) -> None:
        self._files = {
            site: homes[site].site(
                site, "demo", index=index, count=len(SITES), group_key="group.key"
            )
            for index, site in enumerate(SITES)
        }
        for file in self._files.values():
            file.with_name("group.key").write_text(GroupKey(bytes(32)).text())
        self._processes = {site: self._start(site) for site in SITES}

    def kill(self, site: str) -> None:
        """Kill a site as a loss of power does, and start the same command again."""
        self._processes[site].send_signal(signal.SIGKILL)
        self._processes[site].wait(END_S)
        self._processes[site] = self._start(site)

    def finals(self) -> list[dict[str, torch.Tensor]]:
        """Wait for all, and return what each of them has learnt."""
        for site, process in self._processes.items():
            assert process.wait(END_S) == 0, self._log(site).read_text()
        return [self._weights(site) for site in SITES]

    def end(self) -> None:
        """End those that have not ended."""
        for process in self._processes.values():
            process.kill()
            process.wait(END_S)

    def _start(self, site: str) -> subprocess.Popen[bytes]:
        kept = {n: value for n, value in os.environ.items() if n not in OURS}
        threads = {"OMP_NUM_THREADS": "1", "FLARE_SITE": str(self._files[site])}
        with self._log(site).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, EXAMPLE], env=kept | threads, stdout=log, stderr=log
            )

    def _log(self, site: str) -> Path:
        return self._files[site].with_name("site.log")

    def _weights(self, site: str) -> dict[str, torch.Tensor]:
        path = self._files[site].with_name(f"heart-{site}.ckpt")
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        weights: dict[str, torch.Tensor] = saved["state_dict"]
        return weights


@final
class Federation:
    """A server for all, or one for the region north and one above."""

    def __init__(self, stack: ExitStack, topology: str) -> None:
        self.root = stack.enter_context(deployment(process=True))
        self._homes = dict.fromkeys(SITES, self.root)
        regional = topology == "hierarchical"
        if regional:
            home = self.root.member("north")
            region = {"site": str(home), "sites": 2}
            north = stack.enter_context(deployment(process=True, region=region))
            self._homes |= {"north.a": north, "north.b": north}
        for site in SITES:
            self._homes[site].member(site)
        self.root.create("demo", _plan(topology, 3 if regional else len(SITES)))
        if regional:
            north.audited("run created", run="demo")
        self.sites = Sites(self._homes)
        stack.callback(self.sites.end)

    def watch(self, site: str, words: str) -> None:
        """Wait until the server of a site says something of it."""
        self._homes[site].said("demo", f"{site} {words}")


@pytest.fixture(scope="module")
def star() -> Iterator[list[dict[str, torch.Tensor]]]:
    """What the hospitals learn in a star where nobody is killed."""
    with ExitStack() as stack:
        yield Federation(stack, "star").sites.finals()


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_site_may_be_killed_in_every_topology(
    topology: str, star: list[dict[str, torch.Tensor]]
) -> None:
    with ExitStack() as stack:
        federation = Federation(stack, topology)
        federation.watch("north.b", "round 1:" if topology != "async" else "round")
        federation.sites.kill("north.b")
        finals = federation.sites.finals()
        info = federation.root.ended("demo")
    assert (info.state, info.rounds, info.error) == ("finished", ROUNDS, "")
    assert all(_equal(one, finals[0]) for one in finals)
    if topology in {"star", "swarm"}:
        assert _equal(finals[0], star[0])
    if topology == "hierarchical":  # the same mean, summed in another order
        for name, weights in finals[0].items():
            torch.testing.assert_close(weights, star[0][name], rtol=0, atol=1e-6)
