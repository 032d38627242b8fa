"""Who takes more of a server than is allowed is cut off, and nobody else is."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from deployed import Beside, Deployment, deployment
from flare_core.communication import (
    CHUNK_BYTES,
    Identity,
    Limits,
    Ping,
    WhoAmI,
)
from site_scripts import WAIT_S, Stranger, hello

_MB = 1 << 20
_LARGEST = Limits().message_bytes
_SIGNATURE = b"\xff\0\0\0\0\0\0\0\1\x7f"
_GREETING = _SIGNATURE + b"\3\1CURVE".ljust(54, b"\0")


@contextmanager
def _limited(
    pool: ThreadPoolExecutor, *, process: bool = False, **limits: float
) -> Iterator[tuple[Deployment, Beside]]:
    """Run a server with limits, a member "a", and a run beside it."""
    with deployment(process=process, limits=limits) as deployed:
        deployed.member("a")
        with closing(Beside(deployed, pool)) as beside:
            yield deployed, beside


def _connected(deployed: Deployment) -> socket.socket:
    address = "127.0.0.1", int(deployed.endpoint.rpartition(":")[2])
    return socket.create_connection(address, timeout=WAIT_S)


def _ends(raw: socket.socket) -> bool:
    """Wait until a server hangs up."""
    try:
        while raw.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def _announcing(size: int) -> bytes:
    """Return a greeting and the head of a command of this length."""
    return _GREETING + b"\6" + size.to_bytes(8, "big")


def test_a_stranger_that_announces_too_long_a_frame_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with _limited(pool, handshake_s=60) as (deployed, beside):
        with _connected(deployed) as raw:
            raw.sendall(_announcing(_LARGEST + 1))

            assert _ends(raw)

        deployed.audited("refused", what="ended before it said anything")
        assert beside.blake3() == undisturbed


def test_a_member_that_sends_too_long_a_frame_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with _limited(pool) as (deployed, beside), closing(deployed.peer("a")) as peer:
        peer.say(bytes(_LARGEST + 1))

        assert peer.is_cut_off()

        deployed.audited("refused", what="ended before it said anything")
        assert beside.blake3() == undisturbed


def test_who_connects_and_says_nothing_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with _limited(pool, handshake_s=0.5) as (deployed, beside):
        with _connected(deployed) as raw:
            assert _ends(raw)

        # by ZeroMQ's own timer, or by the door's
        line = deployed.audited("refused", user="")
        assert line["what"] in ("said nothing", "ended before it said anything")
        assert beside.blake3() == undisturbed


def test_a_member_that_connects_and_says_nothing_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with _limited(pool, handshake_s=0.5) as (deployed, beside):
        with closing(deployed.peer("a")) as peer:
            assert peer.is_cut_off()
            assert not peer.denied

        deployed.audited("refused", what="said nothing", address="127.0.0.1")
        assert beside.blake3() == undisturbed


def test_of_too_many_strangers_the_oldest_are_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with (
        _limited(pool, handshake_s=60, strangers=3) as (deployed, beside),
        ExitStack() as stack,
    ):
        raw = [stack.enter_context(_connected(deployed)) for _ in range(20)]

        assert all(_ends(one) for one in raw[:17])

        deployed.audited("refused", what="too many strangers", address="127.0.0.1")
        with deployed.account("a").control() as control:  # there is room for him
            assert control.ask(WhoAmI(), Identity).name == "a"
        assert beside.blake3() == undisturbed


def _is_answered(peer: Stranger) -> bool:
    peer.say(hello("a"))
    return peer.hear() is not None


def test_a_connection_too_many_of_one_key_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with (
        _limited(pool, connections_per_key=3) as (deployed, beside),
        ExitStack() as stack,
    ):
        peers = [stack.enter_context(closing(deployed.peer("a"))) for _ in range(4)]
        assert all(_is_answered(peer) for peer in peers[:3])

        peers[3].say(hello("a"))
        peers[3].say(Ping())

        assert peers[3].is_cut_off()
        deployed.audited("refused", what="too many connections", user="a")
        assert all(_is_answered(peer) for peer in peers[:3])
        peers[0].close()
        stack.pop_all()
        for peer in peers[1:]:
            peer.close()
        with deployed.account("a").control() as control:  # there is room again
            assert control.ask(WhoAmI(), Identity).name == "a"
        assert beside.blake3() == undisturbed


def test_who_sends_too_many_messages_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with _limited(pool, messages_per_s=2000) as (deployed, beside):
        with closing(deployed.peer("a")) as peer:
            for _ in range(20_000):
                peer.say(Ping(answer=False))

            assert peer.is_cut_off()

        deployed.audited("refused", what="too many messages", user="a")
        assert beside.blake3() == undisturbed


@pytest.mark.parametrize("hello_first", [False, True])
@pytest.mark.parametrize(
    ("size", "count", "most_mb"), [(_MB, 500, 192), (1, 1_500_000, 320)]
)
def test_a_message_without_an_end_is_cut_off_with_flat_memory(
    *,
    size: int,
    count: int,
    most_mb: int,
    hello_first: bool,
    pool: ThreadPoolExecutor,
    undisturbed: str,
) -> None:
    limited = _limited(
        pool,
        process=True,
        unread_bytes=12 * CHUNK_BYTES,
        handshake_s=60,  # else, on a busy machine, it "said nothing"
    )
    with limited as (deployed, beside):
        before = deployed.rss_bytes
        with closing(deployed.peer("a")) as peer:
            if hello_first:
                assert _is_answered(peer)
            peer.say(b"\x81", *[bytes(size)] * count)

            assert peer.is_cut_off()

        deployed.audited("refused", what="message without an end")
        assert deployed.rss_bytes - before < most_mb * _MB
        assert beside.blake3() == undisturbed


def test_a_message_in_too_many_pieces_is_cut_off(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    with _limited(pool) as (deployed, beside), closing(deployed.peer("a")) as peer:
        peer.say(b"\x81", *[b"1"] * 2000)

        assert peer.is_cut_off()
        deployed.audited("refused", what="message in too many pieces", user="a")
        assert beside.blake3() == undisturbed


def test_strangers_cannot_make_a_server_hold_more_than_a_fixed_amount(
    pool: ThreadPoolExecutor, undisturbed: str
) -> None:
    strangers = 8
    with (
        _limited(pool, process=True, strangers=strangers) as (deployed, beside),
        ExitStack() as stack,
    ):
        before = highest = deployed.rss_bytes
        for _ in range(500):
            raw = stack.enter_context(_connected(deployed))
            with suppress(OSError):  # it is cut off while it speaks
                raw.sendall(_announcing(_LARGEST))
                raw.sendall(bytes(_LARGEST - 1))
            highest = max(highest, deployed.rss_bytes)

        # of a gigabyte; those that were cut off are let go of a little later
        assert highest - before < strangers * _LARGEST + 64 * _MB
        deployed.audited("refused", what="too many strangers")
        assert beside.blake3() == undisturbed
