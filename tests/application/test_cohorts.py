"""Who is invited to which round, and what the others see of it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import msgspec
import numpy as np
import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core.application import Result, RoundPlayed
from flare_core.communication import (
    INITIAL,
    Committed,
    Ping,
    Pong,
    Propose,
    Start,
    pack,
)
from flare_core.federation import invited
from site_scripts import WAIT_S, Local, Stranger, Train, model, play, stream_id, wander
from support import RunningServer, RunServer, SiteFile

_SITES = ("a", "b", "c", "d")
_MODEL = {"w": np.zeros(50_000, np.float32)}
"""Too large to go along with what announces it."""


def _plan(choose: str, k: int = 2, **more: object) -> flare.Plan:
    tree = {"sites": len(_SITES)} | more | {"choose": choose, "k": k}
    selection = msgspec.convert(tree, flare.Selection)
    return flare.Plan(rounds=6, selection=selection)


def _cohorts(server: RunningServer) -> list[Sequence[str]]:
    played = [one.record for one in server.told(RoundPlayed)]
    assert all(list(one.cohort) == list(one.sites) for one in played)
    return [one.cohort for one in played]


def _play_all(
    server: RunningServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> tuple[dict[str, list[int]], Result]:
    """Play as all sites; return the rounds that each has trained in, and the end."""
    rounds: dict[str, list[int]] = {site: [] for site in _SITES}

    def noted(current: flare.ClientRound, site: str) -> Local:
        rounds[site].append(current.number)
        weights, _ = wander(site)(current)
        return weights, 10 * (ord(site) - ord("a") + 1)

    def script(site: str) -> flare.ModelState:
        file = site_file(site, server.endpoint)
        return play(file, _MODEL, lambda current: noted(current, site))

    finals = [pool.submit(script, site) for site in _SITES]
    first, *others = [final.result(WAIT_S) for final in finals]
    for other in others:
        np.testing.assert_array_equal(first["w"], other["w"])
    return rounds, server.result()


@pytest.mark.parametrize("choose", ["random", "round_robin", "by_size", "available"])
def test_only_the_cohort_trains_and_all_get_the_final_model(
    choose: str, run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    results = []
    for _ in range(2):
        server = run_server(_plan(choose))
        rounds, result = _play_all(server, site_file, pool)
        results.append(result.blake3)

        cohorts = _cohorts(server)
        assert result.rounds == len(cohorts) == 6
        assert {len(one) for one in cohorts} == {2}
        for site in _SITES:
            chosen = [n for n, one in enumerate(cohorts) if site in one]
            assert rounds[site] == chosen

    assert results[0] == results[1]


def test_the_sizes_are_those_of_the_updates_before(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    plan = _plan("by_size")
    server = run_server(plan)
    _play_all(server, site_file, pool)

    sizes: dict[str, int] = {}
    for number, found in enumerate(_cohorts(server)):
        expected = invited(
            plan.selection, number, joined=_SITES, present=(), sizes=sizes
        )
        assert set(found) == expected
        sizes |= {site: 10 * (ord(site) - ord("a") + 1) for site in found}


def test_a_site_that_is_never_chosen_gets_the_final_model(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(msgspec.structs.replace(_plan("round_robin", 1), rounds=2))
    rounds, _ = _play_all(server, site_file, pool)

    assert rounds == {"a": [0], "b": [1], "c": [], "d": []}


def test_a_site_whose_turn_it_is_not_is_told_nothing_when_it_asks_again(
    run_server: RunServer,
) -> None:
    server = run_server(_plan("round_robin", 1, sites=2))
    state = flare.ModelState(model(1.0))
    sites = {name: Stranger(server.endpoint) for name in "ab"}
    with ExitStack() as closing:
        for name, site in sites.items():
            closing.callback(site.close)
            site.join(name, state.layout)
        first, second = sites.values()
        assert isinstance(first.hear(), Propose)
        file, update = pack(state), stream_id()
        first.hand_in_at_once(file, round_number=INITIAL)
        assert isinstance(first.hear(), Committed)
        start = first.hear()
        assert isinstance(start, Start)
        assert start.round_number == 0
        first.hand_in_at_once(file, stream=update)
        assert isinstance(first.hear(), Committed)
        start = second.hear()
        assert isinstance(start, Start)
        assert start.round_number == 1

        first.hand_in_at_once(file, stream=update)  # as after a break
        first.propose(state.layout)  # as a script that is started again
        first.say(Ping())

        assert isinstance(first.hear(), Pong)


@pytest.fixture
def deployed() -> Iterator[Deployment]:
    """A server for runs that wait."""
    with deployment() as found:
        yield found


@pytest.mark.parametrize(("choose", "comes_in"), [("available", 0), ("round_robin", 1)])
def test_who_comes_takes_the_place_of_a_site_that_is_gone_if_the_plan_lets_him(
    choose: str, comes_in: int, deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    for name in "abc":
        deployed.member(name)
    deployed.create("demo", _plan(choose, sites=2, newcomers=True))
    rounds: list[int] = []

    def fail(_: flare.ClientRound) -> Local:
        msg = "power cut"
        raise OSError(msg)

    def noted(current: flare.ClientRound) -> Local:
        rounds.append(current.number)
        return wander("c")(current)

    def script(name: str, train: Train) -> Future[flare.ModelState]:
        return pool.submit(play, deployed.site(name, "demo"), _MODEL, train)

    b = script("b", fail)
    a = script("a", wander("a"))
    assert isinstance(b.exception(WAIT_S), OSError)
    deployed.said("demo", "1 of these must come back: b (OSError)")

    c = script("c", noted)
    deployed.audited("joined", site="c")
    b = script("b", wander("b"))

    for final in (a, b, c):
        final.result(WAIT_S)
    assert min(rounds) == comes_in


def test_a_site_that_died_while_it_waited_is_named_when_it_is_chosen(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan("round_robin", 1, sites=2))
    waits = Stranger(server.endpoint)
    state = flare.ModelState(_MODEL)

    def first(current: flare.ClientRound) -> Local:
        server.server.lose("b", "its process was killed")
        return wander("a")(current)

    a = pool.submit(play, site_file("a", server.endpoint), _MODEL, first)
    waits.join("b", state.layout)

    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    waits.close()
    result = server.result()
    assert result.failed_site == "b"
    why = "round 1: sites are gone: b (its process was killed). The quorum of 1 cannot"
    assert result.error.startswith(why)


def test_the_final_metrics_weigh_the_sites_by_what_they_had_last(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    plan = msgspec.structs.replace(_plan("round_robin", 1, sites=2), rounds=2)
    server = run_server(plan)

    def script(name: str, num_examples: int, score: float) -> None:
        with flare.join(_MODEL, site=site_file(name, server.endpoint)) as client:
            for current in client:
                current.submit(current.weights, num_examples=num_examples)
            client.report({"score": score})

    for site in (pool.submit(script, "a", 30, 1.0), pool.submit(script, "b", 10, 5.0)):
        site.result(WAIT_S)

    assert server.result().metrics == {"score": 2.0}
