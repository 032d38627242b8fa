"""Cohorts are the same, whoever is killed and started again."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, final

import msgspec
import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core.application import RoundRecord
from site_scripts import WAIT_S, Local, model, play, wander

_SITES = ("a", "b", "c", "d")
_ROUNDS = 6
_LARGE = model(*range(10_000))
_SELECTION = flare.Selection(sites=len(_SITES), choose="random", k=2, seed=5)
_PLAN = flare.Plan(rounds=_ROUNDS, selection=_SELECTION)
_HELD_IN = 3
_IDLE = "a"
"""Is not in the cohort of that round."""
_SCRIPT = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from site_scripts import model, play, wander
play(Path(sys.argv[1]), model(*range(10_000)), wander("a"))
"""


@final
class _Game:
    """Four sites, two of them in a round where one waits to be let go."""

    def __init__(self, deployed: Deployment, pool: ThreadPoolExecutor) -> None:
        self._deployed = deployed
        self._may_go, self._waits = threading.Event(), threading.Event()
        for site in _SITES:
            deployed.member(site)
        deployed.create("demo", _PLAN)
        self.idle = self.start_idle()
        self._finals = [
            pool.submit(play, deployed.site(site, "demo"), _LARGE, self._training(site))
            for site in _SITES
            if site != _IDLE
        ]
        assert self._waits.wait(WAIT_S)

    def start_idle(self) -> "subprocess.Popen[bytes]":
        """Start the site that will not be in that round, as a process."""
        file = self._deployed.site(_IDLE, "demo")
        tests = Path(__file__).parents[1]
        return subprocess.Popen([sys.executable, "-c", _SCRIPT, file, tests])

    def end_idle(self, number: int) -> None:
        """End that process by a signal."""
        self.idle.send_signal(number)
        self.idle.wait(WAIT_S)

    def let_go(self) -> None:
        """Let the round go on."""
        self._may_go.set()

    def final(self) -> tuple[str, list[list[str]]]:
        """Play it to its end; return the hash of the final model, and who played."""
        self._may_go.set()
        for site in self._finals:
            site.result(WAIT_S)
        assert self.idle.wait(WAIT_S) == 0
        info = self._deployed.ended("demo")
        assert (info.state, info.rounds, info.error) == ("finished", _ROUNDS, "")
        return info.blake3, list(self._cohorts())

    def close(self) -> None:
        """Let everybody go."""
        self._may_go.set()
        self.end_idle(signal.SIGKILL)

    def _training(self, site: str) -> Any:
        train = wander(site)

        def held(current: flare.ClientRound) -> Local:
            if current.number == _HELD_IN:
                self._waits.set()
                assert self._may_go.wait(WAIT_S)
            return train(current)

        return held

    def _cohorts(self) -> Iterator[list[str]]:
        path = self._deployed.folder.runs / "demo" / "rounds.jsonl"
        for line in path.read_bytes().splitlines():
            record = msgspec.json.decode(line, type=RoundRecord)
            assert list(record.cohort) == list(record.sites)
            yield list(record.cohort)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[str, list[list[str]]]:
    """What comes out if nothing happens."""
    with (
        ThreadPoolExecutor(4) as pool,
        deployment() as deployed,
        closing(_Game(deployed, pool)) as game,
    ):
        found = game.final()
    assert _IDLE not in found[1][_HELD_IN]
    assert any(_IDLE in cohort for cohort in found[1])
    return found


def test_a_killed_server_has_the_same_cohorts(
    pool: ThreadPoolExecutor, undisturbed: tuple[str, list[list[str]]]
) -> None:
    with deployment(process=True) as deployed, closing(_Game(deployed, pool)) as game:
        deployed.kill()
        deployed.start()

        assert game.final() == undisturbed


def test_a_site_that_waits_for_its_turn_may_be_killed(
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    undisturbed: tuple[str, list[list[str]]],
) -> None:
    with closing(_Game(deployed, pool)) as game:
        game.end_idle(signal.SIGKILL)
        game.idle = game.start_idle()

        assert game.final() == undisturbed


def test_a_site_that_is_gone_when_it_is_chosen_is_waited_for(
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    undisturbed: tuple[str, list[list[str]]],
) -> None:
    with closing(_Game(deployed, pool)) as game:
        game.end_idle(signal.SIGINT)
        deployed.audited("left", site=_IDLE)
        game.let_go()
        deployed.said("demo", f"1 of these must come back: {_IDLE} (")
        game.idle = game.start_idle()

        assert game.final() == undisturbed
