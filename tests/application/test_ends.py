"""However a run or a site's part in it ends, everybody is told why."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import flare_core as flare
from flare_core.application import RoundPlayed
from flare_core.communication import (
    Bye,
    Chunk,
    Start,
    Welcome,
    ZmqRouter,
    encode,
)
from site_scripts import WAIT_S, add, model, plan, play
from support import RunServer, SiteFile

_ANY_PORT = "tcp://127.0.0.1:0"


def test_a_server_that_breaks_tells_its_sites_why(
    pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    def full(event: object) -> None:
        if isinstance(event, RoundPlayed):
            msg = "no space left"
            raise OSError(msg)

    server = flare.Server(plan(rounds=2, sites=1), observer=full)
    ended = pool.submit(server.run)
    file = site_file("a", server.endpoint)
    site = pool.submit(play, file, model(0), add(1))

    error = site.exception(WAIT_S)

    assert isinstance(error, flare.RunAbortedError)
    assert str(error) == "the server failed: OSError: no space left"
    assert isinstance(ended.exception(WAIT_S), OSError)


def test_a_good_bye_is_not_mistaken_for_the_model_before_it(
    pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    """A site that stops waiting leaves while the next model is on its way."""
    with ZmqRouter(_ANY_PORT) as server:
        file = site_file("a", server.endpoint)
        link = flare.connect(flare.site(file))
        asked = pool.submit(link.plan)
        hello = server.receive(timeout_s=WAIT_S)
        assert hello is not None
        server.send(hello.peer, encode(Welcome(plan=plan(), run="r")))
        asked.result(WAIT_S)
        model_is_out = Start(round_number=0, stream=bytes(16), num_bytes=8)
        server.send(hello.peer, encode(model_is_out))

        left = pool.submit(link.leave, {}, reason="interrupted", failed=True)
        server.receive(timeout_s=WAIT_S)
        server.send(hello.peer, encode(Chunk(bytes(16), 0, [bytes(8)])))
        server.send(hello.peer, encode(Bye()))

        assert left.result(WAIT_S) is None


def test_a_site_that_has_left_is_not_taken_back(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2, quorum=1))
    file = site_file("a", server.endpoint)

    def leave(_: flare.ClientRound) -> tuple[dict[str, float], int]:
        msg = "out of memory"
        raise MemoryError(msg)

    def last_long(current: flare.ClientRound) -> tuple[flare.ModelState, int]:
        if current.number == 0:
            assert isinstance(first.exception(WAIT_S), MemoryError)
            with pytest.raises(flare.RunAbortedError) as told:
                pool.submit(play, file, model(0), add(1)).result(WAIT_S)
            reasons.append(str(told.value))
        return current.weights, 1

    reasons: list[str] = []
    first = pool.submit(play, file, model(0), leave)
    other = pool.submit(play, site_file("b", server.endpoint), model(0), last_long)
    other.result(WAIT_S)

    assert reasons == ["site 'a' was in this run and has left; a run takes nobody back"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (flare.Plan(rounds=0), "rounds"),
        (flare.Plan(rounds=1, selection=flare.Selection(sites=0)), "selection.sites"),
        (flare.Plan(rounds=1, strategy=flare.StrategySettings(mu=-1)), "strategy.mu"),
    ],
)
def test_a_plan_that_python_made_keeps_the_rules_too(
    wrong: flare.Plan, message: str
) -> None:
    with pytest.raises(flare.ConfigurationError, match=message):
        flare.Server(wrong)
