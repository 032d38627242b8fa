"""Sites on the server's machine put their updates where it looks for them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import flare_core as flare
from flare_core.application import (
    Event,
    Published,
    RoundPlayed,
    RoundRecord,
    Updated,
)
from flare_core.communication import Offer, Refused, Start, fill_file, pack
from proxy import Proxy
from site_scripts import (
    WAIT_S,
    Local,
    Stranger,
    add,
    hello,
    plan,
    play,
    stream_id,
    wander,
)
from support import RunningServer, RunServer, SiteFile

_NUM_BYTES = 400_000
_MODEL = {"w": np.random.default_rng(0).standard_normal(_NUM_BYTES // 4, np.float32)}
_ENCODINGS = {
    "as they are": flare.Encoding(),
    "int8": flare.Encoding(up="int8", down="int8"),
    "topk, xor": flare.Encoding(up="topk", keep=0.001, down="xor"),
}


def _run_folder(spool: Path) -> Path:
    (folder,) = spool.iterdir()
    return folder


class _InterruptedError(Exception):
    """What a signal raises."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Raise in the main thread, from any other."""

    def raise_it(*_: object) -> None:
        raise _InterruptedError

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def _records(server: RunningServer) -> list[RoundRecord]:
    return [e.record for e in server.told(RoundPlayed)]


@pytest.mark.parametrize("encoding", _ENCODINGS.values(), ids=_ENCODINGS)
def test_a_shared_spool_changes_nothing_but_the_way(
    encoding: flare.Encoding,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    selection = flare.Selection(sites=2)
    three_rounds = flare.Plan(rounds=3, selection=selection, encoding=encoding)
    found = []
    for share in (False, True):
        server = run_server(three_rounds, share_spool=share)
        spool = server.server.spool if share else None
        with Proxy(server.endpoint) as proxy:
            sites = [
                pool.submit(
                    play,
                    site_file(name, proxy.endpoint, spool=spool),
                    _MODEL,
                    wander(name),
                )
                for name in "ab"
            ]
            weights = [site.result(WAIT_S) for site in sites]
        *_, last = server.told(Published)
        assert weights == [last.weights] * 2
        assert server.result().error == ""
        assert not server.server.spool.exists()
        records = _records(server)
        found.append(
            [
                (r.blake3, r.bytes_up, r.bytes_down, r.sites["a"].error_up)
                for r in records
            ]
        )
        travelled = sum(proxy.passed.values())
        assert travelled < 50_000 if share else travelled > _NUM_BYTES

    over_the_wire, shared = found

    assert shared == over_the_wire
    assert len(shared) == 3


def test_a_site_may_share_it_and_another_not(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(rounds=2), share_spool=True)
    files = [
        site_file("a", server.endpoint),
        site_file("b", server.endpoint, spool=server.server.spool),
    ]

    sites = [pool.submit(play, file, _MODEL, add(1)) for file in files]

    first, second = (site.result(WAIT_S) for site in sites)
    assert first == second
    assert {r.sites[s].bytes_down for r in _records(server) for s in "ab"} == {
        r.sites["a"].bytes_up for r in _records(server)
    }


def test_a_server_that_shares_nothing_says_so(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))
    file = site_file("a", server.endpoint, spool=server.server.spool)

    with pytest.raises(flare.RefusedError, match=r"'a'.*says to share"):
        play(file, _MODEL, add(1))

    assert server.result().failed_site == "a"


def test_a_spool_of_another_server_is_left_alone(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    other = run_server(plan(sites=1), share_spool=True, folder=tmp_path / "other")
    server = run_server(plan(sites=1), share_spool=True)
    spool = other.server.spool

    final = play(site_file("a", server.endpoint, spool=spool), _MODEL, add(1))

    assert np.array_equal(final["w"], _MODEL["w"] + 1)
    assert not [path for path in spool.rglob("*") if path.is_file()]


def test_after_the_end_of_a_run_nothing_is_written(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(), share_spool=True)
    spool = server.server.spool

    def late(current: flare.ClientRound) -> Local:
        server.result()
        return add(1)(current)

    def infinite(current: flare.ClientRound) -> Local:
        return {"w": current.weights["w"] * np.float32(np.inf)}, 1

    a, b = (
        pool.submit(play, site_file(name, server.endpoint, spool=spool), _MODEL, train)
        for name, train in (("a", late), ("b", infinite))
    )

    assert isinstance(b.exception(WAIT_S), flare.RefusedError)
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    assert not spool.exists()


def test_what_is_handed_in_again_leaves_the_first_as_it_is(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    interrupt: Callable[[], None],
) -> None:
    arrived: Future[int] = Future()

    def observe(event: Event) -> None:
        if isinstance(event, Updated) and event.site == "a":
            arrived.set_result(update().st_ino)
            interrupt()  # and the wait for the others ends

    def update() -> os.stat_result:
        return (_run_folder(spool) / "updates" / "a.safetensors").stat()

    server = run_server(plan(), share_spool=True, observer=observe)
    spool = server.server.spool

    def after_both(current: flare.ClientRound) -> Local:
        first, until = arrived.result(WAIT_S), time.monotonic() + WAIT_S
        while update().st_ino == first:
            assert time.monotonic() < until
        return add(3)(current)

    files = [site_file(name, server.endpoint, spool=spool) for name in "ab"]
    b = pool.submit(play, files[1], _MODEL, after_both)
    with flare.join(_MODEL, site=files[0]) as client:
        for current in client:
            weights = current.weights["w"]
            with pytest.raises(_InterruptedError):
                current.submit({"w": weights + np.float32(1)}, num_examples=1)
            current.submit({"w": weights + np.float32(100)}, num_examples=1)

    assert np.allclose(client.weights["w"], _MODEL["w"] + 2, atol=1e-5)
    assert b.result(WAIT_S) == client.weights


@pytest.mark.parametrize("written", [True, False], ids=["too short", "not at all"])
def test_a_file_that_is_not_what_was_said_is_refused(
    *,
    written: bool,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    server = run_server(plan(), share_spool=True)
    large = flare.ModelState(_MODEL)
    frames = pack(large)
    num_bytes = sum(map(len, frames))
    a = pool.submit(play, site_file("a", server.endpoint), _MODEL, add(1))
    with closing(Stranger(server.endpoint)) as b:
        b.join("b", large.layout)
        assert isinstance(b.hear(), Start)
        path = _run_folder(server.server.spool) / "updates" / "b.safetensors"
        if written:
            fill_file(path, num_bytes - len(frames[-1]), frames[:-1])

        b.say(
            Offer(
                stream=stream_id(),
                num_bytes=num_bytes,
                round_number=0,
                num_examples=1,
                spooled=bytes(16),
            )
        )

        refused = b.hear()
        assert isinstance(refused, Refused)
        assert str(path) in refused.refusal.expected
        short = f"{len(frames[0]):,} bytes"
        assert refused.refusal.got == (
            short if written else "No such file or directory"
        )
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)


def test_an_offer_that_is_repeated_after_a_break_counts_once(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(rounds=1), share_spool=True)
    spool, session = server.server.spool, stream_id()
    large = flare.ModelState(_MODEL)
    frames = pack(large)
    num_bytes = sum(map(len, frames))
    a = pool.submit(play, site_file("a", server.endpoint, spool=spool), _MODEL, add(1))
    offer = Offer(
        stream=stream_id(), num_bytes=num_bytes, round_number=0, num_examples=3
    )
    with closing(Stranger(server.endpoint)) as before:
        before.say(hello("b", session=session))
        before.hear()
        before.propose(large.layout)
        assert isinstance(before.hear(), Start)
        path = _run_folder(spool) / "updates" / "b.safetensors"
        digest = fill_file(path, num_bytes, frames)
        offer = msgspec.structs.replace(offer, spooled=digest)
        before.say(offer)
        while not isinstance(before.hear(), Start):
            pass
    with closing(Stranger(server.endpoint)) as after:
        after.say(hello("b", session=session))
        after.say(offer)

        while not isinstance(heard := after.hear(), Start):
            pass
        assert heard.final

    server.until("RoundPlayed")  # and b never says good-bye
    (played,) = [one for one in server.events if isinstance(one, RoundPlayed)]
    assert played.record.num_examples == 1 + 3
    a.result(WAIT_S)
