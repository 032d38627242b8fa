"""Sites that train one model in turn."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core.application import Result, RoundPlayed, RoundRecord
from site_scripts import WAIT_S, Local, Train, play
from support import RunningServer, RunServer, SiteFile

Array: TypeAlias = npt.NDArray[np.float32]
_SITES = ("a", "b", "c")
_MODEL = {"w": np.ones(50_000, np.float32)}
"""Too large to go along with what announces it."""
_NUM_EXAMPLES = 7
"""No power of two: a mean of one update that rounds would show."""


def _plan(*, rounds: int = 6, pass_on: bool = False) -> flare.Plan:
    return flare.Plan(
        rounds=rounds,
        topology=flare.Cyclic(pass_on=pass_on),
        selection=flare.Selection(sites=len(_SITES)),
    )


def _step(site: str, number: int, w: Array) -> Array:
    rng = np.random.default_rng([number, *site.encode()])
    return w * np.float32(1.1) + rng.standard_normal(len(w), np.float32)


def _trains(site: str) -> Train:
    def train(current: flare.ClientRound) -> Local:
        w = _step(site, current.number, current.weights["w"])
        return {"w": w}, _NUM_EXAMPLES

    return train


def _trained_alone(turns: str) -> Array:
    """Return what comes out where one process trains as each site in turn."""
    w = _MODEL["w"]
    for number, site in enumerate(turns):
        w = _step(site, number, w)
    return w


def _turns(server: RunningServer) -> str:
    played = [one.record for one in server.told(RoundPlayed)]
    return "".join("".join(one.sites) for one in played)


def _fail(_: flare.ClientRound) -> Local:
    msg = "power cut"
    raise OSError(msg)


def test_each_site_goes_on_with_what_the_one_before_has_trained(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan())

    finals = [
        pool.submit(play, site_file(site, server.endpoint), _MODEL, _trains(site))
        for site in _SITES
    ]

    alone = _trained_alone("abcabc")
    for final in finals:
        np.testing.assert_array_equal(final.result(WAIT_S)["w"], alone)
    assert server.result().rounds == 6
    assert _turns(server) == "abcabc"


def test_the_turn_of_a_site_that_fails_passes_on_where_the_plan_says_so(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan(pass_on=True))

    def script(site: str, train: Train) -> Future[flare.ModelState]:
        file = site_file(site, server.endpoint)
        return pool.submit(play, file, _MODEL, train)

    a, b, c = (script(one, _fail if one == "b" else _trains(one)) for one in _SITES)

    assert isinstance(b.exception(WAIT_S), OSError)
    alone = _trained_alone("acacac")
    for final in (a, c):
        np.testing.assert_array_equal(final.result(WAIT_S)["w"], alone)
    assert server.result().error == ""
    assert _turns(server) == "acacac"


def test_else_the_run_ends_and_names_it(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(_plan())

    for one in _SITES:
        train = _fail if one == "b" else _trains(one)
        pool.submit(play, site_file(one, server.endpoint), _MODEL, train)

    result: Result = server.result()
    assert result.failed_site == "b"
    assert "round 1: site 'b' failed: OSError" in result.error


@pytest.fixture
def deployed() -> Iterator[Deployment]:
    """A server for runs that wait, as a process that can be killed."""
    with deployment(process=True) as found:
        for site in _SITES:
            found.member(site)
        yield found


def test_a_site_that_comes_back_and_a_killed_server_change_no_turn_that_was_passed_on(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.create("demo", _plan(rounds=4, pass_on=True))
    may_go, waits = threading.Event(), threading.Event()

    def held(current: flare.ClientRound) -> Local:
        waits.set()
        assert may_go.wait(WAIT_S)
        return _trains("c")(current)

    def script(site: str, train: Train) -> Future[flare.ModelState]:
        return pool.submit(play, deployed.site(site, "demo"), _MODEL, train)

    try:
        failing = script("b", _fail)
        finals = [script("a", _trains("a")), script("c", held)]
        assert isinstance(failing.exception(WAIT_S), OSError)
        assert waits.wait(WAIT_S)
        left = deployed.audited("left", site="b")
        deployed.kill()
        deployed.start()
        finals.append(script("b", _trains("b")))
        deployed.audited("joined", after=left, site="b")
    finally:
        may_go.set()

    alone = _trained_alone("acca")
    path = deployed.folder.runs / "demo" / "rounds.jsonl"
    for final in finals:
        np.testing.assert_array_equal(final.result(WAIT_S)["w"], alone)
    records = [
        msgspec.json.decode(line, type=RoundRecord)
        for line in path.read_bytes().splitlines()
    ]
    assert [list(one.sites) for one in records] == [["a"], ["c"], ["c"], ["a"]]


def test_who_is_gone_is_waited_for_and_the_model_is_the_same(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.create("demo", _plan(rounds=4))

    def script(site: str, train: Train) -> Future[flare.ModelState]:
        return pool.submit(play, deployed.site(site, "demo"), _MODEL, train)

    failing = script("b", _fail)
    finals = [script(site, _trains(site)) for site in "ac"]
    assert isinstance(failing.exception(WAIT_S), OSError)
    deployed.said("demo", "1 of these must come back: b (OSError)")
    finals.append(script("b", _trains("b")))

    alone = _trained_alone("abca")
    for final in finals:
        np.testing.assert_array_equal(final.result(WAIT_S)["w"], alone)
