import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

import flare_core as flare
from flare_core.application import SiteJoined, Updated
from flare_core.communication import (
    Aborted,
    Hello,
    Initial,
    Join,
    Leave,
    Ping,
    Pong,
    Refused,
    Start,
    ToServer,
    Trained,
    Welcome,
    pack,
)
from site_scripts import WAIT_S, Local, Stranger, add, model, plan, play
from support import RunningServer, RunServer, SiteFile

_LAYOUT = flare.ModelState(model(0)).layout
_WEIGHTS = pack(flare.ModelState(model(100)))
_TRAINED = Trained(round_number=0, num_examples=9, metrics={}, global_metrics={})


@pytest.fixture
def server(run_server: RunServer) -> RunningServer:
    return run_server(plan(rounds=2))


@pytest.fixture
def stranger(server: RunningServer) -> Iterator[Stranger]:
    with closing(Stranger(server.endpoint)) as stranger:
        yield stranger


def _plays_on(
    server: RunningServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    """Play the run with two sites and see that nothing of a stranger is in it."""
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(0), add(3))

    assert a.result(WAIT_S)["w"].tolist() == [4]
    assert b.result(WAIT_S)["w"].tolist() == [4]
    assert server.result().error == ""
    joined = {e.site for e in server.events if isinstance(e, SiteJoined)}
    assert joined == {"a", "b"}


def test_bytes_that_are_no_zeromq_do_not_disturb_a_run(
    server: RunningServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    port = int(server.endpoint.rpartition(":")[2])
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 1000):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(garbage)

    _plays_on(server, pool, site_file)


def test_frames_that_are_no_message_do_not_disturb_a_run(
    server: RunningServer,
    stranger: Stranger,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    stranger.say(b"")
    stranger.say(b"\x82\xa4type\xa4Ping\xa1x" + b"\x91" * 100_000)
    stranger.say(b"", b"request", b"")
    stranger.say(b"\0" * 1_000_000)

    _plays_on(server, pool, site_file)


@pytest.mark.parametrize(
    "message",
    [Join(layout=_LAYOUT), Initial(), _TRAINED, Leave(metrics={}), Ping()],
    ids=lambda message: type(message).__name__,
)
def test_who_says_no_hello_is_turned_away_and_does_not_disturb_a_run(
    message: ToServer,
    server: RunningServer,
    stranger: Stranger,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    stranger.say(message, *_WEIGHTS)

    answer = stranger.hear()
    assert isinstance(answer, Aborted)
    assert "does not know this connection" in answer.reason
    _plays_on(server, pool, site_file)


@pytest.mark.parametrize("message", [Initial(), _TRAINED], ids=["Initial", "Trained"])
@pytest.mark.parametrize("name", ["0", "z"])
def test_weights_of_who_did_not_join_do_not_disturb_a_run(
    *,
    name: str,
    message: ToServer,
    server: RunningServer,
    stranger: Stranger,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    stranger.say(Hello(site=name))
    stranger.say(message, *_WEIGHTS)
    stranger.say(Ping())
    assert isinstance(stranger.hear(), Welcome)
    assert isinstance(stranger.hear(), Pong)

    _plays_on(server, pool, site_file)


def _joined(endpoint: str, name: str) -> Stranger:
    """Join as a site that says what the test wants from then on."""
    site = Stranger(endpoint)
    site.say(Hello(site=name))
    site.hear()
    site.say(Join(layout=_LAYOUT))
    return site


def test_initial_weights_that_nobody_asked_for_are_ignored(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    server = run_server(plan())
    b = _joined(server.endpoint, "b")
    b.say(Initial(), *_WEIGHTS)  # before "a" has joined
    b.say(Join(layout=_LAYOUT))  # and twice
    b.say(Ping())
    assert isinstance(b.hear(), Pong)
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(0))
    assert isinstance(b.hear(), Start)
    b.say(Initial(), *_WEIGHTS)

    b.say(_TRAINED, *pack(flare.ModelState(model(1))))

    assert a.result(WAIT_S)["w"].tolist() == [1]
    b.close()


@pytest.mark.parametrize(
    "body",
    [
        [],
        _WEIGHTS[:1],
        [b"garbage", *_WEIGHTS[1:]],
        [_WEIGHTS[0], bytes(_WEIGHTS[1])[:-1]],
        [*_WEIGHTS, b""],
    ],
    ids=["nothing", "header only", "no header", "cut", "one frame more"],
)
def test_an_update_that_is_no_model_is_refused_and_never_averaged(
    body: list[bytes | memoryview],
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    b = _joined(server.endpoint, "b")
    assert isinstance(b.hear(), Start)

    b.say(_TRAINED, *body)

    answer = b.hear()
    assert isinstance(answer, Refused)
    assert answer.refusal.what == "update"
    assert a.result(WAIT_S)["w"].tolist() == [2]
    b.close()


def test_what_comes_too_often_or_too_late_counts_once(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2))
    b = _joined(server.endpoint, "b")
    once = pack(flare.ModelState(model(3)))
    diverged = pack(flare.ModelState(model(np.nan)))

    def after_b(current: flare.ClientRound) -> Local:
        assert isinstance(b.hear(), Start)
        if current.number == 0:
            b.say(_TRAINED, *once)
        else:
            b.say(_TRAINED, *once)  # late: it answers round 0
            b.say(
                Trained(round_number=1, num_examples=9, metrics={}, global_metrics={}),
                *once,
            )
        b.say(_TRAINED, *_WEIGHTS)
        b.say(_TRAINED, *diverged)
        b.say(Ping())
        assert isinstance(b.hear(), Pong)
        return model(3), 1

    a = pool.submit(play, site_file("a", server.endpoint), model(3), after_b)

    assert a.result(WAIT_S)["w"].tolist() == [3]
    final = b.hear()
    assert isinstance(final, Start)
    assert final.final
    b.say(_TRAINED, *diverged)
    b.say(Leave(metrics={}))
    assert server.result().rounds == 2
    updates = [e.site for e in server.events if isinstance(e, Updated)]
    assert updates == ["b", "a", "b", "a"]
    b.close()
