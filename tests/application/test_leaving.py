import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import flare_core as flare
from flare_core.application import (
    Published,
    RoundPlayed,
    SiteJoined,
    SiteLeft,
    Updated,
)
from flare_core.communication import (
    INITIAL,
    Aborted,
    Committed,
    Propose,
    Start,
    Welcome,
    ZmqRouter,
    encode,
    pack,
)
from site_scripts import WAIT_S, Local, Stranger, Watch, add, model, plan, play
from support import RunningServer, RunServer, SiteFile


def _fail(current: flare.ClientRound) -> Local:
    if current.number == 1:
        msg = "out of memory,\nplease buy more"
        raise MemoryError(msg)
    return add(1)(current)


def test_a_failure_is_reported_to_the_others_with_its_reason(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=3))
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(0), _fail)

    at_a, at_b = a.exception(WAIT_S), b.exception(WAIT_S)

    assert isinstance(at_b, MemoryError)  # its own script sees its own error
    sentence = "round 1: site 'b' failed: MemoryError: out of memory, please buy more"
    assert isinstance(at_a, flare.RunAbortedError)
    assert str(at_a).startswith(sentence)
    result = server.result()
    assert (result.rounds, result.failed_site) == (1, "b")
    assert result.error.startswith(sentence)


def test_a_run_with_a_quorum_goes_on_when_a_site_fails(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=3, quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(3))
    b = pool.submit(play, site_file("b", server.endpoint), model(0), _fail)

    assert a.result(WAIT_S)["w"].tolist() == [2 + 3 + 3]
    assert isinstance(b.exception(WAIT_S), MemoryError)
    assert server.result().error == ""
    played = [e.record for e in server.told(RoundPlayed)]
    assert [list(record.sites) for record in played] == [["a", "b"], ["a"], ["a"]]


def _forget(path: Path) -> None:
    with flare.join(model(0), site=path) as client:
        for _ in client:
            pass


def test_a_loop_that_forgets_to_submit_is_told_so(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    b = pool.submit(_forget, site_file("b", server.endpoint))

    at_b = b.exception(WAIT_S)

    assert isinstance(at_b, flare.ConfigurationError)
    assert "round 0 was not handed in: call round.submit(...)" in str(at_b)
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    assert "round 0 was not handed in" in str(a.exception())


def _submit_twice(path: Path) -> None:
    with flare.join(model(0), site=path) as client:
        for current in client:
            current.submit(current.weights, num_examples=1)
            current.submit(current.weights, num_examples=1)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_loop_that_submits_twice_is_told_so_and_does_not_wait_for_ever(
    rounds: int, pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=rounds, sites=1))

    script = pool.submit(_submit_twice, site_file("a", server.endpoint))

    assert isinstance(script.exception(WAIT_S), flare.ConfigurationError)
    assert "round 0 was handed in already" in str(script.exception())
    server.result()


def _break_off(path: Path) -> None:
    with flare.join(model(0), site=path) as client:
        for _ in client:
            break


def test_a_loop_that_ends_early_ends_the_run_with_its_reason(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    pool.submit(_break_off, site_file("b", server.endpoint)).result(WAIT_S)

    at_a = a.exception(WAIT_S)

    assert isinstance(at_a, flare.RunAbortedError)
    assert "round 0: site 'b' left: its loop ended early" in str(at_a)


def test_a_site_that_leaves_before_round_0_ends_the_run(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    watch = Watch()
    server = run_server(plan(), observer=watch)
    a = pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    watch.until(SiteJoined)
    link = flare.connect(flare.site(site_file("b", server.endpoint)))
    link.plan()

    link.leave({}, reason="its loop is too short", failed=True)

    at_a = a.exception(WAIT_S)
    assert isinstance(at_a, flare.RunAbortedError)
    assert "'b' left before round 0: its loop is too short" in str(at_a)


def _waiting_run(
    pool: ThreadPoolExecutor, run: RunServer, file: SiteFile, *, rounds: int = 1
) -> tuple[RunningServer, Future[flare.ModelState]]:
    """Start a run in which "a" has handed in and waits for "b", which is silent."""
    watch = Watch()
    server = run(plan(rounds=rounds), observer=watch)
    a = pool.submit(play, file("a", server.endpoint), model(0), add(1))
    _joined("b", server, watch, num_before=1)
    watch.until(Updated)
    return server, a


def _joined(name: str, server: RunningServer, watch: Watch, *, num_before: int) -> None:
    for _ in range(num_before):
        watch.until(SiteJoined)
    silent = _raw_site(name, server)
    assert isinstance(silent.hear(), Start)
    silent.close()


def test_losing_a_site_from_another_thread_ends_the_wait_for_it(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server, a = _waiting_run(pool, run_server, site_file)

    server.server.lose("b", "its process ended with 137")

    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    assert "site 'b' failed: its process ended with 137" in str(a.exception())
    assert server.result().failed_site == "b"


def test_stopping_from_another_thread_ends_the_run_for_all(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server, a = _waiting_run(pool, run_server, site_file)

    server.server.stop("Ctrl-C")

    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    assert str(a.exception()) == "Ctrl-C"
    result = server.result()
    assert (result.error, result.failed_site) == ("Ctrl-C", "")


def test_a_server_that_has_ended_can_be_stopped_and_told_of_losses(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))
    pool.submit(play, site_file("a", server.endpoint), model(0), add(1))
    result = server.result()

    server.server.lose("a", "its process ended")
    server.server.stop("no more")

    assert server.result() == result


def test_losing_a_site_whose_update_is_in_does_not_start_a_round_without_quorum(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server, a = _waiting_run(pool, run_server, site_file, rounds=2)

    server.server.lose("a", "its process ended")

    assert server.result(timeout_s=WAIT_S).error.startswith(
        "round 0: site 'a' failed: its process ended. The quorum of 2"
    )
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)


@pytest.mark.parametrize("gone", [("a",), ("a", "b")])
def test_updates_of_lost_sites_make_the_last_round(
    gone: tuple[str, ...], run_server: RunServer
) -> None:
    watch = Watch()
    server = run_server(plan(sites=3, quorum=2), observer=watch)
    sites = {name: _raw_site(name, server) for name in "abc"}
    assert isinstance(sites["a"].hear(), Propose)
    initial = pack(flare.ModelState(model(0)))
    assert isinstance(sites["a"].hand_in(initial, round_number=INITIAL), Committed)
    for site in sites.values():
        assert isinstance(site.hear(), Start)
    for name in "ab":
        update = pack(flare.ModelState(model(4)))
        assert isinstance(sites[name].hand_in(update), Committed)
        watch.until(Updated)

    for name in gone:
        server.server.lose(name, "gone")
    server.server.lose("c", "gone")

    watch.until(RoundPlayed)
    for name in {"a", "b"} - set(gone):
        assert isinstance(sites[name].hear(), Start)
        server.server.lose(name, "gone")
    result = server.result(timeout_s=WAIT_S)
    assert (result.rounds, result.error) == (1, "")
    (final,) = (e for e in server.told(Published) if e.final)
    assert final.weights["w"].tolist() == [4]
    for site in sites.values():
        site.close()


def _raw_site(name: str, server: RunningServer) -> Stranger:
    site = Stranger(server.endpoint)
    site.join(name, flare.ModelState(model(0)).layout)
    return site


def test_a_site_may_leave_when_the_server_is_gone(
    pool: ThreadPoolExecutor, site_file: SiteFile, caplog: pytest.LogCaptureFixture
) -> None:
    with ZmqRouter("tcp://127.0.0.1:0") as server:  # it will go without a word
        file = site_file("a", server.endpoint, patience_s=0.2)
        link = flare.connect(flare.site(file))
        asked = pool.submit(link.plan)
        hello = server.receive(timeout_s=WAIT_S)
        assert hello is not None
        server.send(hello.peer, encode(Welcome(plan=plan(), run="r")))
        asked.result(WAIT_S)

    with caplog.at_level(logging.INFO, logger="flare_core"):
        link.leave({}, reason="tired")
        link.leave({}, reason="again")

    said = [message for message in caplog.messages if "leaves" in message]
    assert len(said) == 1
    assert said[0].startswith("site 'a' leaves: ")


def test_a_site_told_of_the_end_in_a_round_leaves_quietly(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(rounds=2))
    training = threading.Event()

    def slow(current: flare.ClientRound) -> Local:
        training.set()
        server.result(timeout_s=WAIT_S)  # the run ends while it trains
        return current.weights, 1

    a = pool.submit(play, site_file("a", server.endpoint), model(0), slow)
    b = pool.submit(play, site_file("b", server.endpoint), model(0), add(1))
    assert training.wait(WAIT_S)

    server.server.stop("enough")

    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    assert str(a.exception()) == "enough"
    assert isinstance(b.exception(WAIT_S), flare.RunAbortedError)
    assert [e.site for e in server.told(SiteLeft)] == []


def test_the_aborted_are_told_why(run_server: RunServer) -> None:
    server = run_server(plan())
    site = _raw_site("a", server)

    server.server.stop("for a reason")

    told = site.hear()
    assert isinstance(told, Aborted)
    assert told.reason == "for a reason"
    site.close()


def test_a_site_that_still_loads_its_model_is_told_why_the_run_ended(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan())
    link = flare.connect(flare.site(site_file("b", server.endpoint)))
    link.plan()
    server.server.lose("a", "its process ended with 1")
    server.result()

    with pytest.raises(flare.RunAbortedError, match="'a' left before round 0: its pro"):
        link.join(flare.Proposal(weights=flare.ModelState(model(0))))
