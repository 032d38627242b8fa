"""When a round ends that not all sites have answered, and what comes after it."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import final

import msgspec
import numpy as np
import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core import Admission, RoundPolicy
from flare_core._plan import EncodingUp
from flare_core.application import (
    RoundPlayed,
    RunPaused,
    RunResumed,
    UpdateIgnored,
)
from packages import Install
from site_scripts import WAIT_S, Local, Train, add, model, plan, play
from support import RunningServer, RunServer, SiteFile

_FAR = flare.AggregationSettings(name="norm_bounding", settings={"most_norm": 1e9})


def _with(base: flare.Plan, **tables: object) -> flare.Plan:
    return msgspec.structs.replace(base, **tables)


@final
class _Slow:
    """A training that takes its time in round 0, until it is let go."""

    def __init__(self, step: float) -> None:
        self._train = add(step)
        self._may_go = threading.Event()
        self.rounds: list[int] = []

    def __call__(self, current: flare.ClientRound) -> Local:
        self.rounds.append(current.number)
        assert current.number > 0 or self._may_go.wait(WAIT_S)
        return self._train(current)

    def let_go(self) -> None:
        self._may_go.set()


def _records(server: RunningServer) -> list[list[str]]:
    played = [e.record for e in server.told(RoundPlayed)]
    return [list(one.sites) for one in played]


def _when(number: int, then: threading.Event, train: Train) -> Train:
    """Return a training that waits at a round for something."""

    def waiting(current: flare.ClientRound) -> Local:
        assert current.number != number or then.wait(WAIT_S)
        return train(current)

    return waiting


@pytest.mark.parametrize(
    "policy", [RoundPolicy(deadline_s=0.3), RoundPolicy(grace_s=0.1)], ids=str
)
def test_a_round_ends_without_a_slow_site_which_catches_up(
    policy: RoundPolicy,
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    server = run_server(_with(plan(rounds=3, quorum=1), round=policy))
    slow, in_round_1 = _Slow(100), threading.Event()

    def fast(current: flare.ClientRound) -> Local:
        if current.number == 1:
            slow.let_go()
            assert in_round_1.wait(WAIT_S)
        return add(1)(current)

    def catching_up(current: flare.ClientRound) -> Local:
        if current.number == 1:
            in_round_1.set()
        return slow(current)

    a = pool.submit(play, site_file("a", server.endpoint), model(0), fast)
    b = pool.submit(play, site_file("b", server.endpoint), model(0), catching_up)

    final = a.result(WAIT_S)["w"].tolist()
    assert b.result(WAIT_S)["w"].tolist() == final
    records = _records(server)
    assert records[0] == ["a"]
    assert slow.rounds[:2] == [0, 1]  # what it had trained was too late
    late = [e.round_number for e in server.told(UpdateIgnored)]
    assert 0 in late


def test_a_deadline_without_a_quorum_waits_for_it_and_tells_the_sites(
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = RoundPolicy(deadline_s=0.1)
    server = run_server(_with(plan(quorum=2), round=policy))
    slow = _Slow(3)
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(0), slow)

    server.until("round 0 is past its deadline and needs 2 updates; 1 are in")
    slow.let_go()

    assert a.result(WAIT_S)["w"].tolist() == [2]
    assert b.result(WAIT_S)["w"].tolist() == [2]
    for site in "ab":
        told = f"site {site!r}: the server says: round 0 is past its deadline"
        assert told in caplog.text
    waits = [e for e in server.events if isinstance(e, RunPaused | RunResumed)]
    assert [type(event) for event in waits] == [RunPaused, RunResumed]
    assert waits[-1].round_number == 0


@pytest.mark.parametrize(
    ("up", "size", "rule"),
    [
        ("none", 1, flare.AggregationSettings()),
        ("int8", 50_000, flare.AggregationSettings()),
        ("none", 1, _FAR),
    ],
)
def test_a_late_update_counts_in_the_next_round_as_the_step_that_it_is(
    *,
    up: EncodingUp,
    size: int,
    rule: flare.AggregationSettings,
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    policy = RoundPolicy(grace_s=5, late_weight=0.5)
    wanted = _with(
        plan(rounds=2, quorum=1),
        round=policy,
        encoding=flare.Encoding(up=up),
        aggregation=rule,
    )
    server = run_server(wanted)
    slow, counted = _Slow(8), threading.Event()
    slow_8 = _weighing(slow, 8)

    def fast(current: flare.ClientRound) -> Local:
        if current.number == 1:
            slow.let_go()
            assert counted.wait(WAIT_S)
        return _weighing(add(1), 4)(current)

    initial = {"w": np.zeros(size, np.float32)}
    a = pool.submit(play, site_file("a", server.endpoint), initial, fast)
    b = pool.submit(play, site_file("b", server.endpoint), initial, slow_8)
    server.until("Updated(site='b', round_number=1")
    counted.set()

    # round 0: 1, of a alone.  Round 1: a says 1 + 1, b took a step of 8 from 0, which
    # is one from 1 to 9, and half of its 8 examples count: (4 * 2 + 4 * 9) / 8, which
    # is what comes out, too, where each site counts the same
    expected = pytest.approx([5.5] * size, abs=0.1 if up == "int8" else 0)
    assert a.result(WAIT_S)["w"].tolist() == expected
    assert b.result(WAIT_S)["w"].tolist() == expected
    assert _records(server) == [["a"], ["a", "b"]]


_COUNTS_STEPS_LATER = """
import flare_core


class Later(flare_core.Strategy, frozen=True):
    def refusal(self, update):
        if update.round_number == 0 or update.num_steps:
            return None
        return flare_core.Refusal(
            reason="update", site=update.site, what="num_steps",
            expected="some from round 1 on", got="0", advice="say them",
        )

    def weight(self, update):
        return update.num_examples / (update.num_steps if update.round_number else 1)
"""


def test_a_late_update_has_to_say_what_the_round_needs_that_it_counts_in(
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
    install: Install,
) -> None:
    install("flare_core.strategies", _COUNTS_STEPS_LATER, later="Later")
    policy = RoundPolicy(grace_s=0, late_weight=0.5)
    later = flare.StrategySettings(name="later")
    wanted = _with(plan(rounds=2, quorum=1), round=policy, strategy=later)
    server = run_server(wanted)
    slow, refused = _Slow(8), threading.Event()

    def fast(file: Path) -> float:
        with flare.join(model(0), site=file) as client:
            for current in client:
                if current.number == 1:
                    slow.let_go()
                    assert refused.wait(WAIT_S)
                weights = {"w": current.weights["w"] + np.float32(1)}
                current.submit(weights, num_examples=1, num_steps=1)
        return float(client.weights["w"].item())

    a = pool.submit(fast, site_file("a", server.endpoint))
    b = pool.submit(play, site_file("b", server.endpoint), model(0), slow)
    with pytest.raises(flare.UpdateError, match="some from round 1 on"):
        b.result(WAIT_S)
    refused.set()

    assert a.result(WAIT_S) == 2.0
    assert server.result().error == ""


def _weighing(train: Train, num_examples: int) -> Train:
    return lambda current: (train(current)[0], num_examples)


def test_a_site_that_was_not_there_at_the_start_joins_between_rounds(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    selection = flare.Selection(sites=1, newcomers=True)
    server = run_server(_with(plan(rounds=3), selection=selection))
    there, rounds = threading.Event(), list[int]()

    def newcomer(current: flare.ClientRound) -> Local:
        rounds.append(current.number)
        return add(3)(current)

    def first(current: flare.ClientRound) -> Local:
        if current.number == 1:
            b = pool.submit(play, site_file("b", server.endpoint), model(7), newcomer)
            joined.append(b)
            server.until("SiteJoined(site='b'")
            there.set()
        return add(1)(current)

    joined: list[Future[flare.ModelState]] = []
    a = pool.submit(play, site_file("a", server.endpoint), model(0), first)

    assert a.result(WAIT_S)["w"].tolist() == [4]
    assert joined[0].result(WAIT_S)["w"].tolist() == [4]
    assert rounds == [2]
    assert _records(server) == [["a"], ["a"], ["a", "b"]]


def test_a_newcomer_with_another_model_is_refused_by_name(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    selection = flare.Selection(sites=1, newcomers=True)
    server = run_server(_with(plan(rounds=1), selection=selection))

    def first(current: flare.ClientRound) -> Local:
        other = model(0, 0)
        b = pool.submit(play, site_file("b", server.endpoint), other, add(1))
        error = b.exception(WAIT_S)
        assert isinstance(error, flare.LayoutError)
        assert "expected F32 (1,) as at site 'a', got F32 (2,)" in str(error)
        return add(1)(current)

    a = pool.submit(play, site_file("a", server.endpoint), model(0), first)

    assert a.result(WAIT_S)["w"].tolist() == [1]


def test_a_site_that_is_refused_may_try_again_until_it_is_in_quarantine(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    admission = Admission(most_refusals=2)
    server = run_server(_with(plan(quorum=1), admission=admission))
    errors: list[BaseException | None] = []

    def patient(current: flare.ClientRound) -> Local:
        errors.append(first_time.exception(WAIT_S))
        for _ in range(2):
            b = pool.submit(play, file, model(0), add(math.nan))
            errors.append(b.exception(WAIT_S))
        return add(1)(current)

    file = site_file("b", server.endpoint)
    first_time = pool.submit(play, file, model(0), add(math.nan))
    a = pool.submit(play, site_file("a", server.endpoint), model(0), patient)

    assert a.result(WAIT_S)["w"].tolist() == [1]
    first, second, third = errors
    assert isinstance(first, flare.UpdateError)
    assert isinstance(second, flare.UpdateError)
    assert isinstance(third, flare.RunAbortedError)
    assert "'b' is in quarantine: it was refused 2 times" in str(third)
    assert "tensor 'w': expected finite values" in str(third)


@pytest.mark.parametrize(
    ("admission", "words"),
    [
        (
            Admission(most_norm=5.0),
            "most of it in tensor 'w': expected at most 5 (admission.most_norm",
        ),
        (Admission(most_examples=9), "num_examples: expected at most 9, got 10"),
    ],
    ids=["norm", "examples"],
)
def test_an_update_beyond_the_plans_bounds_is_refused_and_the_run_goes_on(
    admission: Admission,
    words: str,
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    server = run_server(_with(plan(quorum=1), admission=admission))
    four = model(1, 1, 1, 1)
    a = pool.submit(play, site_file("a", server.endpoint), four, add(2))  # norm 4
    b = pool.submit(play, site_file("b", server.endpoint), four, add(3, 10))

    error = b.exception(WAIT_S)

    assert isinstance(error, flare.UpdateError)
    assert words in str(error)
    assert a.result(WAIT_S)["w"].tolist() == [3] * 4


@pytest.fixture
def deployed() -> Iterator[Deployment]:
    """A server for runs that wait."""
    with deployment() as found:
        yield found


def test_a_run_of_which_all_sites_are_gone_pauses_and_goes_on_when_they_are_back(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", plan(rounds=2))
    files = {name: deployed.site(name, "demo") for name in "ab"}

    def fail(current: flare.ClientRound) -> Local:
        if current.number == 1:
            msg = "power cut"
            raise OSError(msg)
        return add(1)(current)

    gone = [pool.submit(play, files[name], model(0), fail) for name in "ab"]
    assert all(isinstance(one.exception(WAIT_S), OSError) for one in gone)
    deployed.said("demo", "needs 2 updates; 2 of these must come back: a (OSError); ")
    info = deployed.info("demo")
    assert (info.state, info.rounds) == ("paused", 1)
    assert "b (OSError)" in info.error

    back = [pool.submit(play, files[name], model(0), add(1)) for name in "ab"]

    assert [one.result(WAIT_S)["w"].tolist() for one in back] == [[2], [2]]
    info = deployed.ended("demo")
    assert (info.state, info.rounds, info.error) == ("finished", 2, "")


def test_a_run_whose_site_is_gone_for_good_ends_with_the_quorum_and_says_so(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "ab":
        deployed.member(name)
    deployed.create("demo", plan(rounds=3, quorum=1))

    def fail(_: flare.ClientRound) -> Local:
        msg = "power cut"
        raise OSError(msg)

    b = pool.submit(play, deployed.site("b", "demo"), model(0), fail)
    a = pool.submit(play, deployed.site("a", "demo"), model(0), add(1))

    assert isinstance(b.exception(WAIT_S), OSError)
    assert a.result(WAIT_S)["w"].tolist() == [3]
    assert deployed.ended("demo").state == "finished"
    deployed.audited("left", site="b", why="OSError")
