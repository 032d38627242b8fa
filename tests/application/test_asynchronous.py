"""Sites that train all the time: a few updates make a model, stale ones count less."""

import math
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar, final

import msgspec
import numpy as np
import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core._plan import EncodingUp
from flare_core.application import (
    RoundPlayed,
    RoundRecord,
    Updated,
    UpdateIgnored,
    ZmqLink,
)
from site_scripts import WAIT_S, Local, Train, play, wander
from support import RunningServer, RunServer, SiteFile

_T = TypeVar("_T")
_HALF = 0.5
"""Of a step, where three models came since."""


def _plan(rounds: int, buffer: int, sites: int = 2, **more: Any) -> flare.Plan:
    return flare.Plan(
        rounds=rounds,
        topology=flare.Asynchronous(buffer=buffer, **more),
        selection=flare.Selection(sites=sites),
    )


def _records(server: RunningServer) -> list[RoundRecord]:
    return [one.record for one in server.told(RoundPlayed)]


def _staleness(records: list[RoundRecord]) -> list[dict[str, int]]:
    return [
        {site: report.staleness for site, report in record.sites.items()}
        for record in records
    ]


def _step(size: float, num_examples: int = 3) -> Train:
    def train(current: flare.ClientRound) -> Local:
        return {"w": current.weights["w"] + np.float32(size)}, num_examples

    return train


@final
class _Pair:
    """A slow site, a step of 8 from the first model, and a fast one that steps by 1.

    The fast one, whose updates alone make a model each, waits in round 0 until the slow
    one has that model too, and in round 3 until the update of the slow one has counted:
    three models came since.  Then it hands in the last one.
    """

    def __init__(self) -> None:
        self.both, self.far, self.may_go, self.counted = (
            threading.Event() for _ in range(4)
        )
        self._over = threading.Event()
        self.slow_rounds: list[int] = []

    def slow(self, current: flare.ClientRound) -> Local:
        """Train as the slow site."""
        self.slow_rounds.append(current.number)
        self.both.set()
        waits_for = {0: self.may_go, 4: self._over}.get(current.number)
        assert waits_for is None or waits_for.wait(WAIT_S)
        return _step(8)(current)

    def fast(self, current: flare.ClientRound) -> Local:
        """Train as the fast site."""
        assert self.both.wait(WAIT_S)
        if current.number == 3:
            self.far.set()
            assert self.counted.wait(WAIT_S)
        return _step(1)(current)

    def results(self, fast: Future[_T], slow: Future[_T]) -> Iterator[_T]:
        """Yield what comes of both, once the slow one's update has counted."""
        self.counted.set()
        yield fast.result(WAIT_S)
        self._over.set()
        yield slow.result(WAIT_S)


@pytest.mark.parametrize(
    ("up", "size", "shared"),
    [
        ("none", 1, False),
        ("none", 50_000, False),
        ("none", 50_000, True),
        ("int8", 50_000, False),
    ],
)
def test_a_stale_update_counts_as_the_shorter_step_that_it_is(
    *,
    up: EncodingUp,
    size: int,
    shared: bool,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    encoding = flare.Encoding(up=up)
    plan = msgspec.structs.replace(_plan(5, buffer=1), encoding=encoding)
    server = run_server(plan, share_spool=shared)
    spool = server.server.spool.absolute() if shared else None
    pair, initial = _Pair(), {"w": np.zeros(size, np.float32)}

    def script(site: str, train: Train) -> Future[flare.ModelState]:
        file = site_file(site, server.endpoint, spool=spool)
        return pool.submit(play, file, initial, train)

    fast, slow = script("a", pair.fast), script("b", pair.slow)
    assert pair.far.wait(WAIT_S)
    pair.may_go.set()
    server.until("Updated(site='b', round_number=3")

    # 3 of the fast one; 8 * 1/2 of the slow one; a step of 1 from a model that is one
    # behind by now
    expected = 3 + 8 * _HALF + 1 / math.sqrt(2)
    rtol = 1e-2 if up == "int8" else 1e-6
    for weights in pair.results(fast, slow):
        np.testing.assert_allclose(weights["w"], expected, rtol=rtol)
    a, b = {"a": 0}, {"b": 3}
    assert _staleness(_records(server)) == [a, a, a, b, {"a": 1}]
    assert [one.num_examples for one in _records(server)] == [3] * 5


def test_an_update_that_is_too_stale_is_refused_and_its_site_goes_on(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan(5, buffer=1, most_staleness=2))
    pair, initial = _Pair(), {"w": np.zeros(1, np.float32)}

    fast = pool.submit(play, site_file("a", server.endpoint), initial, pair.fast)
    slow = pool.submit(play, site_file("b", server.endpoint), initial, pair.slow)
    assert pair.far.wait(WAIT_S)
    pair.may_go.set()
    server.until("Updated(site='b', round_number=3")

    first, second = pair.results(fast, slow)
    assert first["w"].tolist() == second["w"].tolist()
    assert UpdateIgnored("b", 0) in server.events
    assert pair.slow_rounds[:2] == [0, 3]
    assert _staleness(_records(server))[3] == {"b": 0}


def test_with_a_buffer_for_all_sites_it_is_federated_averaging(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    star = flare.Plan(rounds=4, selection=flare.Selection(sites=3))
    hashes = []
    for plan in (star, _plan(4, buffer=3, sites=3)):
        server = run_server(plan)
        sites = [site_file(name, server.endpoint) for name in "abc"]
        initial = {"w": np.zeros(1000, np.float32)}
        finals = [
            pool.submit(play, file, initial, wander(name))
            for file, name in zip(sites, "abc", strict=True)
        ]
        wait(finals, WAIT_S)
        hashes.append(server.result().blake3)

    assert hashes[0] == hashes[1]


def test_what_comes_while_a_model_is_made_counts_in_the_next_one(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan(40, buffer=1, sites=3, most_staleness=1000))
    handed_in = dict.fromkeys("abc", 0)
    initial = {"w": np.zeros(200_000, np.float32)}

    def script(site: str) -> None:
        def train(current: flare.ClientRound) -> Local:
            handed_in[site] += 1
            return _step(1)(current)

        play(site_file(site, server.endpoint), initial, train)

    for one in [pool.submit(script, name) for name in "abc"]:
        one.result(WAIT_S)

    counted = Counter(site for record in _records(server) for site in record.sites)
    assert counted.total() == 40
    for site, times in handed_in.items():
        assert times - counted[site] in {0, 1}  # one that came when the run was over


def test_the_scores_of_older_models_are_not_those_of_the_newest(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan(5, buffer=1))
    pair, initial = _Pair(), {"w": np.zeros(1, np.float32)}

    def script(site: str, train: Train) -> None:
        with flare.join(initial, site=site_file(site, server.endpoint)) as run:
            for current in run:
                weights, num_examples = train(current)
                told = {"number": float(current.number)}
                current.submit(weights, num_examples=num_examples, global_metrics=told)

    fast = pool.submit(script, "a", pair.fast)
    slow = pool.submit(script, "b", pair.slow)
    assert pair.far.wait(WAIT_S)
    pair.may_go.set()
    server.until("Updated(site='b', round_number=3")
    assert list(pair.results(fast, slow)) == [None, None]

    scores = [one.global_metrics for one in _records(server)]
    assert scores == [{"number": 0}, {"number": 1}, {"number": 2}, {}, {}]
    (late,) = [e for e in server.told(Updated) if e.site == "b"]
    assert late.report.global_metrics == {"number": 0}


@pytest.fixture
def deployed() -> Iterator[Deployment]:
    """A server as a process, which can be killed."""
    with deployment(process=True) as found:
        for site in "ab":
            found.member(site)
        yield found


@pytest.mark.parametrize("size", [1, 50_000])
def test_a_killed_server_still_takes_what_was_trained_from_older_models(
    size: int, deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.create("demo", _plan(5, buffer=1))
    pair, initial = _Pair(), {"w": np.zeros(size, np.float32)}

    def script(site: str, train: Train) -> Future[flare.ModelState]:
        return pool.submit(play, deployed.site(site, "demo"), initial, train)

    fast, slow = script("a", pair.fast), script("b", pair.slow)
    assert pair.far.wait(WAIT_S)
    deployed.kill()
    deployed.start()
    pair.may_go.set()
    deployed.audited("round", sites=["b"])

    expected = 3 + 8 * _HALF + 1 / math.sqrt(2)
    for weights in pair.results(fast, slow):
        np.testing.assert_allclose(weights["w"], expected, rtol=1e-6)


def test_a_finished_update_is_handed_in_though_its_site_was_killed_meanwhile(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    """Two models came since the one that it was trained from."""
    server = run_server(_plan(4, buffer=1))
    model = flare.ModelState({"w": np.zeros(3, np.float32)})
    proposal = flare.Proposal(weights=model)
    site = flare.site(site_file("slow", server.endpoint))
    killed = ZmqLink(site)
    killed.plan()
    joining = pool.submit(killed.join, proposal)
    far, go_on = threading.Event(), threading.Event()

    def train(current: flare.ClientRound) -> Local:
        assert joining.result(WAIT_S).round_number == 0
        if current.number == 2:
            far.set()
            assert go_on.wait(WAIT_S)
        return _step(1)(current)

    fast = pool.submit(play, site_file("fast", server.endpoint), dict(model), train)
    assert far.wait(WAIT_S)
    killed.close()
    trained = flare.ModelState({"w": np.full(3, 8, np.float32)})
    update = flare.Update(site="slow", round_number=0, weights=trained, num_examples=3)

    again = ZmqLink(site)
    again.plan()
    newest = pool.submit(again.resume, proposal, update)
    server.until("SiteReport(num_examples=3, num_steps=0")
    server.until("staleness=2")
    go_on.set()

    assert newest.result(WAIT_S).round_number >= 3
    fast.result(WAIT_S)
    again.leave({}, reason="seen enough")
    stale = [one for one in _staleness(_records(server)) if one.get("slow")]
    assert stale == [{"slow": 2}]
