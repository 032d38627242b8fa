"""A server that is started again on its folder goes on where it was."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import final

import msgspec
import numpy as np
import pytest
import xxhash

import flare_core as flare
from deployed import Deployment, deployment
from flare_core.application import RoundRecord
from site_scripts import WAIT_S, Local, Train, add, model, plan, play, wander

_ROUNDS = 3
_LARGE = model(*range(10_000))
"""Too large to go along with what announces it: updates are files."""


@final
class _Game:
    """Two sites in round 1: the update of a is in, and b waits to be let go."""

    def __init__(
        self,
        deployed: Deployment,
        pool: ThreadPoolExecutor,
        rule: flare.AggregationSettings | None = None,
    ) -> None:
        self._deployed = deployed
        self._pool = pool
        self._b_may_go = threading.Event()
        self._round_1 = threading.Event()
        for name in "ab":
            deployed.member(name)
        what = plan(rounds=_ROUNDS)
        if rule is not None:
            what = msgspec.structs.replace(what, aggregation=rule)
        deployed.create("demo", what)
        self.sites = {
            "a": self._play("a", wander("a")),
            "b": self._play("b", self._held),
        }
        assert self._round_1.wait(WAIT_S)
        deployed.said("demo", "a round 1: ")
        self.spool = deployed.folder.runs / "demo" / "spool" / "demo"

    def _play(
        self, name: str, train: Callable[[flare.ClientRound], Local]
    ) -> Future[flare.ModelState]:
        site = self._deployed.site(name, "demo")
        return self._pool.submit(play, site, _LARGE, train)

    def _held(self, current: flare.ClientRound) -> Local:
        if current.number == 1:
            self._round_1.set()
            assert self._b_may_go.wait(WAIT_S)
        return wander("b")(current)

    def final(self) -> str:
        """Play it to its end; return the hash of the final model."""
        self._b_may_go.set()
        for site in self.sites.values():
            site.result(WAIT_S)
        info = self._deployed.ended("demo")
        assert (info.state, info.rounds, info.error) == ("finished", _ROUNDS, "")
        return info.blake3

    def close(self) -> None:
        """Let b go."""
        self._b_may_go.set()


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """The hash of the final model, if nothing happens."""
    with (
        ThreadPoolExecutor(4) as pool,
        deployment() as deployed,
        closing(_Game(deployed, pool)) as game,
    ):
        return game.final()


@pytest.fixture
def game(deployed: Deployment, pool: ThreadPoolExecutor) -> Iterator[_Game]:
    """A run in its round 1."""
    with closing(_Game(deployed, pool)) as game:
        yield game


def _records(deployed: Deployment) -> list[RoundRecord]:
    lines = (deployed.folder.runs / "demo" / "rounds.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=RoundRecord) for line in lines]


def test_a_killed_server_goes_on_with_the_updates_that_were_in(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with deployment(process=True) as deployed, closing(_Game(deployed, pool)) as game:
        _committed(game.spool)

        deployed.kill()
        deployed.start()

        assert game.final() == undisturbed
        records = _records(deployed)
        assert [one.round for one in records] == [0, 1, 2]
        assert all(sorted(one.sites) == ["a", "b"] for one in records)
        progress = (deployed.folder.runs / "demo" / "progress.log").read_text()
        assert progress.count("a round 1: ") == 1  # it was not sent again
        deployed.audited("resumed", run="demo", round=1)


def test_updates_that_wait_for_all_others_outlive_the_server_and_so_does_the_centre(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    rule = flare.AggregationSettings(name="centred_clipping", settings={"radius": 0.05})
    finals: list[str] = []
    for killed in (False, True):
        with (
            deployment(process=True) as deployed,
            closing(_Game(deployed, pool, rule)) as game,
        ):
            if killed:
                _committed(game.spool)
                deployed.kill()
                deployed.start()
            finals.append(game.final())

    assert finals[0] == finals[1] != undisturbed


def _committed(spool: Path) -> None:
    """Wait until the update of a is in the store; asked for as the server does."""
    with closing(sqlite3.connect(spool / "run.sqlite")) as store:
        while not store.execute("SELECT * FROM updates").fetchone():
            pass


def test_a_server_may_be_started_again_and_again(
    game: _Game, deployed: Deployment, undisturbed: str
) -> None:
    for _ in range(3):
        deployed.stop()
        deployed.start()

    assert game.final() == undisturbed
    assert [one.round for one in _records(deployed)] == [0, 1, 2]


def test_a_damaged_update_is_asked_for_again(
    game: _Game, deployed: Deployment, undisturbed: str
) -> None:
    _committed(game.spool)
    deployed.stop()
    update = game.spool / "updates" / "a.safetensors"
    update.write_bytes(bytes(update.stat().st_size))
    deployed.start()

    assert game.final() == undisturbed


def test_a_damaged_global_model_halts_the_run_until_it_is_put_back(
    game: _Game, deployed: Deployment, undisturbed: str
) -> None:
    deployed.stop()
    (path,) = game.spool.glob("models/*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    deployed.start()

    info = deployed.info("demo")
    assert info.state == "paused"
    name = xxhash.xxh3_128_hexdigest(whole)
    assert f"{name}.safetensors, is damaged: expected XXH3-128 {name}" in info.error
    path.write_bytes(whole)
    assert game.final() == undisturbed


def test_a_damaged_store_is_named_and_nothing_is_removed(
    game: _Game, deployed: Deployment
) -> None:
    deployed.stop()
    store = game.spool / "run.sqlite"
    for path in game.spool.glob("run.sqlite*"):
        path.write_bytes(b"garbage" * 1000)
    deployed.start()

    info = deployed.info("demo")
    assert info.state == "paused"
    assert f"the store of run 'demo', {store}, cannot be opened" in info.error
    assert store.exists()
    _give_up(game, deployed)


def _give_up(game: _Game, deployed: Deployment) -> None:
    """Stop a run that is halted: its sites are told."""
    deployed.end("demo")
    game.close()
    assert deployed.info("demo").state == "stopped"
    for site in game.sites.values():
        assert isinstance(site.exception(WAIT_S), flare.RunAbortedError)


def test_a_store_of_another_run_is_named(game: _Game, deployed: Deployment) -> None:
    deployed.stop()
    with closing(sqlite3.connect(game.spool / "run.sqlite")) as store:
        store.execute("UPDATE identity SET run = 'other'")
        store.commit()
    deployed.start()

    error = deployed.info("demo").error
    assert "is of run 'other'" in error
    assert "was the folder copied, or flare-adapters changed?" in error
    _give_up(game, deployed)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_what_a_strategy_remembers_outlives_the_server(
    name: str, deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")
    finals: list[bytes] = []
    for run, restart in (("undisturbed", False), ("disturbed", True)):
        strategy = flare.StrategySettings(name=name)
        deployed.create(run, flare.Plan(rounds=4, strategy=strategy))
        in_round_2, may_go_on = threading.Event(), threading.Event()
        train = _waits_in_round_2(in_round_2, may_go_on)

        site = pool.submit(play, deployed.site("a", run), _LARGE, train)
        assert in_round_2.wait(WAIT_S)
        if restart:
            deployed.stop()
            deployed.start()
        may_go_on.set()

        finals.append(site.result(WAIT_S)["w"].tobytes())
        assert deployed.ended(run).state == "finished"
    assert finals[0] == finals[1]


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_a_model_that_rounds_leave_as_it_is_outlives_the_server(
    name: str, deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.member("a")
    strategy = flare.StrategySettings(name=name)
    deployed.create("demo", flare.Plan(rounds=4, strategy=strategy))
    in_round_2, may_go_on = threading.Event(), threading.Event()
    train = _waits_in_round_2(in_round_2, may_go_on, add(0))
    site = pool.submit(play, deployed.site("a", "demo"), _LARGE, train)
    assert in_round_2.wait(WAIT_S)

    deployed.stop()
    deployed.start()
    may_go_on.set()

    assert site.result(WAIT_S) == flare.ModelState(_LARGE)
    assert len({one.blake3 for one in _records(deployed)}) == 1
    assert deployed.ended("demo").state == "finished"


def _jump(current: flare.ClientRound) -> Local:
    rng = np.random.default_rng(current.number)
    values = current.weights["w"]
    return {"w": values + rng.normal(size=values.shape).astype(values.dtype)}, 1


def _waits_in_round_2(
    in_round_2: threading.Event, may_go_on: threading.Event, train: Train = _jump
) -> Train:
    def waiting(current: flare.ClientRound) -> Local:
        if current.number == 2:
            in_round_2.set()
            assert may_go_on.wait(WAIT_S)
        return train(current)

    return waiting
