import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

import flare_core as flare
from flare_core.application import RoundPlayed, SiteJoined, Updated
from flare_core.communication import (
    CHUNK_BYTES,
    INITIAL,
    WINDOW,
    Aborted,
    Again,
    Chunk,
    Commit,
    Committed,
    Hello,
    Join,
    Leave,
    Offer,
    Outgoing,
    Ping,
    Pong,
    Propose,
    Refused,
    Start,
    ToServer,
    Want,
    Welcome,
    pack,
)
from site_scripts import WAIT_S, Local, Stranger, add, hello, model, plan, play
from support import RunningServer, RunServer, SiteFile

_LAYOUT = flare.ModelState(model(0)).layout
_WEIGHTS = pack(flare.ModelState(model(100)))
_ID = bytes(16)


def _offer(round_number: int) -> Offer:
    return Offer(stream=_ID, num_bytes=1, round_number=round_number, short=b"1")


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
    joined = {e.site for e in server.told(SiteJoined)}
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
    stranger.say(b"D" * 24)
    stranger.say(Chunk(_ID, 2**63, [b"of nothing"]))
    stranger.say(b"\0" * (2 * CHUNK_BYTES))

    _plays_on(server, pool, site_file)


@pytest.mark.parametrize(
    "message",
    [
        Join(layout=_LAYOUT, plan=""),
        _offer(INITIAL),
        Want(stream=_ID, start=0, stop=1),
        Commit(stream=_ID, digest=_ID),
        Leave(metrics={}),
        Ping(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_who_says_no_hello_is_asked_to_and_does_not_disturb_a_run(
    message: ToServer,
    server: RunningServer,
    stranger: Stranger,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    stranger.say(Chunk(_ID, 0, [b"1"]))  # left from a connection that broke: no answer
    stranger.say(message)

    assert isinstance(stranger.hear(), Again)
    stranger.say(hello("z"))
    assert isinstance(stranger.hear(), Welcome)
    _plays_on(server, pool, site_file)


@pytest.mark.parametrize("round_number", [INITIAL, 0])
@pytest.mark.parametrize("name", ["0", "z"])
def test_who_did_not_join_hands_nothing_in_and_gets_no_model(
    *,
    name: str,
    round_number: int,
    server: RunningServer,
    stranger: Stranger,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    stranger.say(hello(name))
    stranger.hand_in_at_once(_WEIGHTS, round_number=round_number)
    stranger.say(Offer(stream=_ID, num_bytes=1, round_number=round_number))
    stranger.say(Chunk(_ID, 0, [b"1"]))
    stranger.say(Want(stream=_ID, start=0, stop=1))
    stranger.say(Ping())
    assert isinstance(stranger.hear(), Welcome)
    for _ in range(2):  # once for each offer
        assert isinstance(stranger.hear(), Aborted)
    assert isinstance(stranger.hear(), Pong)

    _plays_on(server, pool, site_file)


def _joined(endpoint: str, name: str) -> Stranger:
    """Join as a site that says what the test wants from then on."""
    site = Stranger(endpoint)
    site.join(name, _LAYOUT)
    return site


def _answers_nothing_more(site: Stranger) -> None:
    site.say(Ping())
    assert isinstance(site.hear(), Pong)


def test_initial_weights_that_nobody_asked_for_are_ignored(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    server = run_server(plan())
    b = _joined(server.endpoint, "b")
    b.hand_in_at_once(_WEIGHTS, round_number=INITIAL)  # before "a" has joined
    b.propose(_LAYOUT)  # and twice
    _answers_nothing_more(b)
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(0))
    assert isinstance(b.hear(), Start)
    b.hand_in_at_once(_WEIGHTS, round_number=INITIAL)
    assert isinstance(b.hear(), Start)  # once more: they are late
    _answers_nothing_more(b)

    answer = b.hand_in(pack(flare.ModelState(model(1))), num_examples=9)

    assert isinstance(answer, Committed)
    assert a.result(WAIT_S)["w"].tolist() == [1]
    b.close()


_FILE = b"".join(_WEIGHTS)
_OTHER_HEADER = _FILE[:8] + _FILE[8:].replace(b'"F32"', b'"I32"')


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    "file",
    [
        b"",
        _FILE[:-4],
        _FILE[:-1],
        _FILE + b"\0",
        b"\0" * len(_FILE),
        b"\xff" * len(_FILE),
        _FILE[8:] + _FILE[:8],
        _FILE[:8] + b"garbage!" + _FILE[16:],
        _FILE.replace(b"   ", b" \0 ", 1),
        (len(_FILE) - 16).to_bytes(8, "little") + _FILE[8:],
    ],
    ids=[
        "nothing",
        "header only",
        "cut",
        "one byte more",
        "zeros",
        "ones",
        "moved",
        "no header",
        "no JSON",
        "longer header",
    ],
)
def test_an_update_that_is_no_model_is_refused_and_never_averaged(
    *,
    file: bytes,
    at_once: bool,
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    b = _joined(server.endpoint, "b")
    assert isinstance(b.hear(), Start)

    if at_once:
        b.hand_in_at_once([file])
        answer = b.hear()
    else:
        answer = b.hand_in([file])

    assert isinstance(answer, Refused)
    assert answer.refusal.what == "update"
    assert a.result(WAIT_S)["w"].tolist() == [2]
    b.close()


def test_a_model_of_other_types_in_as_many_bytes_is_refused(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    b = _joined(server.endpoint, "b")
    assert isinstance(b.hear(), Start)

    answer = b.hand_in([_OTHER_HEADER])

    assert isinstance(answer, Refused)
    assert answer.refusal.what == "tensor 'w'"
    assert (answer.refusal.expected, answer.refusal.got) == ("F32 (1,)", "I32 (1,)")
    assert a.result(WAIT_S)["w"].tolist() == [2]
    b.close()


@pytest.mark.parametrize("at_once", [False, True])
def test_an_update_with_another_digest_than_its_bytes_is_refused(
    *,
    at_once: bool,
    run_server: RunServer,
    pool: ThreadPoolExecutor,
    site_file: SiteFile,
) -> None:
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    b = _joined(server.endpoint, "b")
    assert isinstance(b.hear(), Start)

    if at_once:
        b.hand_in_at_once(_WEIGHTS, digest=_ID)
        answer = b.hear()
    else:
        answer = b.hand_in(_WEIGHTS, digest=_ID)  # asked for several times

    assert isinstance(answer, Refused)
    assert answer.refusal.got == "others, several times"
    assert a.result(WAIT_S)["w"].tolist() == [2]
    b.close()


def test_more_bytes_than_were_asked_for_are_refused(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    server = run_server(plan(quorum=1))
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    b = _joined(server.endpoint, "b")
    assert isinstance(b.hear(), Start)
    b.say(Offer(stream=_ID, num_bytes=len(_FILE), round_number=0))
    assert isinstance(b.hear(), Want)

    b.say(Chunk(_ID, 0, [_FILE, b"\0"]))

    assert isinstance(b.hear(), Refused)
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
        stream = secrets.token_bytes(16)
        number = current.number
        assert isinstance(b.hear(), Start)
        b.hand_in_at_once(once, round_number=number - 1)
        assert isinstance(b.hear(), Start)  # once more: it is late
        b.hand_in_at_once(once, round_number=number + 1)
        assert isinstance(b.hear(), Aborted)  # nobody can be so early
        answer = b.hand_in(once, round_number=number, num_examples=9, stream=stream)
        assert isinstance(answer, Committed)
        b.hand_in_at_once(_WEIGHTS, round_number=number)
        b.hand_in_at_once(diverged, round_number=number)
        _answers_nothing_more(b)
        b.hand_in_at_once(_WEIGHTS, round_number=number, stream=stream)
        _answers_nothing_more(b)
        return model(3), 1

    a = pool.submit(play, site_file("a", server.endpoint), model(3), after_b)

    assert a.result(WAIT_S)["w"].tolist() == [3]
    final = b.hear()
    assert isinstance(final, Start)
    assert final.final
    b.hand_in_at_once(diverged, round_number=1)
    assert isinstance(b.hear(), Start)
    b.hand_in_at_once(diverged, round_number=2)
    b.say(Leave(metrics={}))
    assert server.result().rounds == 2
    updates = [e.site for e in server.told(Updated)]
    assert updates == ["b", "a", "b", "a"]
    b.close()


_LARGE = flare.ModelState({"w": np.zeros((WINDOW + 1) * CHUNK_BYTES, np.uint8)})
_LARGE_FILE = Outgoing(pack(_LARGE))


def _large_run(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile, session: bytes
) -> tuple[RunningServer, Stranger, Start]:
    """Start a run of a large model in which "b" is a stranger in round 0."""
    server = run_server(plan())
    pool.submit(play, site_file("a", server.endpoint), _LARGE, add(1))
    b = Stranger(server.endpoint)
    b.say(hello("b", session=session))
    b.hear()
    b.propose(_LARGE.layout)
    start = b.hear()
    assert isinstance(start, Start)
    return server, b, start


def test_an_update_goes_on_where_its_connection_broke_and_counts_once(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    session = secrets.token_bytes(16)
    server, first, _ = _large_run(run_server, pool, site_file, session)
    offer = Offer(
        stream=_ID, num_bytes=_LARGE_FILE.num_bytes, round_number=0, num_examples=1
    )
    first.say(offer)
    want = first.hear()
    assert isinstance(want, Want)
    chunks = [Chunk(_ID, *one) for one in _LARGE_FILE.chunks(0, offer.num_bytes)]
    for chunk in (chunks[0], chunks[0], chunks[2], chunks[1]):  # one again, one early
        first.say(chunk)
    gap = first.hear()
    assert isinstance(gap, Want)  # as if what is missing were lost
    assert gap.start == CHUNK_BYTES
    _answers_nothing_more(first)
    first.close()

    second = Stranger(server.endpoint)
    second.say(hello("b", session=session))
    assert isinstance(second.hear(), Welcome)
    second.say(offer)
    rest = second.hear()

    assert isinstance(rest, Want)
    assert (rest.start, rest.stop) == (2 * CHUNK_BYTES, offer.num_bytes)
    assert isinstance(second.hand_in(pack(_LARGE), stream=_ID), Committed)
    final = second.hear()
    assert isinstance(final, Start)
    assert final.final
    second.say(Leave(metrics={}))
    assert server.result().error == ""
    (record,) = (e.record for e in server.told(RoundPlayed))
    assert record.sites["b"].bytes_up == offer.num_bytes
    assert [e.site for e in server.told(SiteJoined)].count("b") == 1
    second.close()


def test_a_model_is_sent_in_the_ranges_asked_for_and_no_more_than_a_window_of_it(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    _, b, start = _large_run(run_server, pool, site_file, _ID)
    size = start.num_bytes

    def sent(first: int, last: int) -> list[tuple[int, bytes]]:
        b.say(Want(stream=start.stream, start=first, stop=last))
        b.say(Ping())
        chunks: list[tuple[int, bytes]] = []
        while isinstance(answer := b.hear(), Chunk):
            assert answer.stream == start.stream
            chunks.append((answer.offset, b"".join(answer.frames)))
        assert isinstance(answer, Pong)
        return chunks

    file = b"".join(pack(_LARGE))
    assert sent(5, 9) == [(5, file[5:9])]
    assert sent(size - 1, 2**62 - 1) == [(size - 1, file[-1:])]
    assert sent(9, 5) == sent(size, size + 1) == sent(2**61, 2**62 - 1) == []
    whole = sent(0, 2**62 - 1)
    assert b"".join(piece for _, piece in whole) == file[: WINDOW * CHUNK_BYTES]
    b.close()


def test_who_wants_a_model_that_is_gone_is_told_of_the_one_that_is_out(
    run_server: RunServer, pool: ThreadPoolExecutor, site_file: SiteFile
) -> None:
    _, b, start = _large_run(run_server, pool, site_file, _ID)

    b.say(Want(stream=_ID, start=0, stop=1))

    assert b.hear() == start
    b.close()


def test_a_site_that_says_nothing_for_too_long_is_lost(run_server: RunServer) -> None:
    server = run_server(plan(), patience_s=0.5)
    a, b = _joined(server.endpoint, "a"), _joined(server.endpoint, "b")
    assert isinstance(a.hear(), Propose)

    b.say(Ping())
    while isinstance(told := b.hear(), Pong):
        b.say(Ping())

    assert isinstance(told, Aborted)
    assert "site 'a' left before round 0: nothing was heard of it for 0.5 s" in (
        told.reason
    )
    assert server.result().failed_site == "a"
    a.close()
    b.close()


@pytest.mark.usefixtures("server")
def test_a_site_of_another_run_is_turned_away(stranger: Stranger) -> None:
    stranger.say(Hello(site="a", session=_ID, run="yesterday's"))

    answer = stranger.hear()

    assert isinstance(answer, Aborted)
    assert "takes part in run yesterday's, and that is none of" in answer.reason
