"""However a run or a site's part in it ends, everybody is told why."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

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
from site_scripts import WAIT_S, Local, add, model, plan, play
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


def test_a_site_whose_script_failed_comes_back_and_plays_the_same_round(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2, quorum=1))
    file = site_file("a", server.endpoint)
    played: list[int] = []

    def fail(_: flare.ClientRound) -> Local:
        msg = "out of memory"
        raise MemoryError(msg)

    def again(current: flare.ClientRound) -> Local:
        played.append(current.number)
        may_go_on.set()
        return add(3)(current)

    def last_long(current: flare.ClientRound) -> Local:
        if current.number == 0:
            assert isinstance(first.exception(WAIT_S), MemoryError)
            second.append(pool.submit(play, file, model(0), again))
            assert may_go_on.wait(WAIT_S)
        return add(1)(current)

    second: list[Future[flare.ModelState]] = []
    may_go_on = threading.Event()
    first = pool.submit(play, file, model(0), fail)
    other = pool.submit(play, site_file("b", server.endpoint), model(0), last_long)

    assert other.result(WAIT_S)["w"].tolist() == [4]
    assert second[0].result(WAIT_S)["w"].tolist() == [4]
    assert played == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (flare.Plan(rounds=0), "rounds"),
        (flare.Plan(rounds=1, selection=flare.Selection(sites=0)), "selection.sites"),
        (flare.Plan(rounds=1, local=flare.FedProx(mu=-1)), "local.mu"),
    ],
)
def test_a_plan_that_python_made_keeps_the_rules_too(
    wrong: flare.Plan, message: str
) -> None:
    with pytest.raises(flare.ConfigurationError, match=message):
        flare.Server(wrong)
