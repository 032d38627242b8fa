import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from flare_core import ProtocolError
from flare_core.communication import Digest, Frame, Incoming, Outgoing, _streams

pytestmark = pytest.mark.usefixtures("small_chunks")

_PIECES = st.lists(st.binary(max_size=20), max_size=8)
_OFFSETS = st.integers(0, 200)


def _digest(content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(content)


@given(_PIECES, _OFFSETS, _OFFSETS)
@example([b"a" * 8, b"b" * 8], 0, 16)
@example([], 0, 1)
def test_the_chunks_of_any_range_are_its_bytes(
    pieces: list[bytes], start: int, stop: int
) -> None:
    whole = b"".join(pieces)

    chunks = list(Outgoing(pieces).chunks(start, stop))

    position = start
    for offset, frames in chunks:
        assert offset == position
        assert all(map(len, frames))
        position += sum(map(len, frames))
        assert offset < position <= offset + _streams.CHUNK_BYTES
    assert b"".join(b"".join(frames) for _, frames in chunks) == whole[start:stop]
    assert len(chunks) == -(-len(whole[start:stop]) // _streams.CHUNK_BYTES)


def test_large_pieces_are_views_and_small_ones_are_joined() -> None:
    large = bytearray(4)
    stream = Outgoing([b"a", b"b", b"c", memoryview(large), b"d", b"", b"e"])

    ((_, frames), (_, rest)) = stream.chunks(0, stream.num_bytes)
    large[:] = b"LATE"

    assert [bytes(frame) for frame in (*frames, *rest)] == [b"abc", b"LATE", b"d", b"e"]


def test_pieces_of_any_element_type_are_sent_as_bytes() -> None:
    words = memoryview(b"12345678").cast("I")

    stream = Outgoing([words, b"9"])

    assert stream.num_bytes == 9
    assert b"".join(stream.views(2, 9)) == b"3456789"


@given(_PIECES)
def test_a_stream_is_short_if_it_may_go_along_with_its_offer(
    pieces: list[bytes],
) -> None:
    whole = b"".join(pieces)

    short = Outgoing(pieces).short

    assert short == (whole if len(whole) <= _streams.SHORT_BYTES else b"")


@given(_PIECES, st.lists(st.tuples(_OFFSETS, _OFFSETS), max_size=6))
@example([b"0123456789abcdef"], [(0, 16), (0, 16)])
@example([b"0123456789abcdef"], [(0, 8), (0, 16)])
def test_a_digest_is_that_of_the_whole_whatever_was_seen_of_it(
    pieces: list[bytes], ranges: list[tuple[int, int]]
) -> None:
    stream, digest = Outgoing(pieces), Digest()

    for start, stop in ranges:
        for offset, frames in stream.chunks(start, stop):
            digest.saw(offset, frames)

    assert digest.of(stream) == _digest(b"".join(pieces))
    assert digest.of(stream) == _digest(b"".join(pieces))  # and again


class Transfer(RuleBasedStateMachine):
    """Whatever is lost, repeated or early: what is written is what was sent."""

    @initialize(pieces=_PIECES)
    def begin(self, pieces: list[bytes]) -> None:
        self.whole = b"".join(pieces)
        self.outgoing = Outgoing(pieces)
        self.written = b""
        self.granted = 0
        self.gap = False
        self.gaps: set[int] = set()
        self.in_flight: list[tuple[int, list[Frame]]] = []
        self.arrived: list[tuple[int, list[Frame]]] = []
        self.incoming = Incoming(len(self.whole), self.write)

    def write(self, offset: int, frames: object) -> None:
        assert offset == len(self.written)
        assert isinstance(frames, list)
        self.written += b"".join(frames)

    @rule(window=st.integers(1, 40))
    def ask(self, window: int) -> None:
        wanted = self.incoming.wanted(window)

        if wanted is None:
            underway = self.granted - len(self.written)
            enough = 2 * underway >= window or self.granted == len(self.whole)
            assert enough
            assert not self.gap or self.written == self.whole
            return
        start, stop = wanted
        if self.gap:  # from there once more
            assert start == len(self.written) < stop
            self.in_flight.clear()
        else:
            assert start == self.granted < stop
            assert stop <= min(len(self.written) + window, len(self.whole))
        self.gap = False
        self.granted = stop
        self.in_flight += self.outgoing.chunks(start, stop)

    @precondition(lambda self: self.in_flight)
    @rule()
    def arrive(self) -> None:
        chunk = self.in_flight.pop(0)

        assert self.incoming.take(*chunk)

        self.arrived.append(chunk)

    @precondition(lambda self: self.arrived)
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        assert not self.incoming.take(*data.draw(st.sampled_from(self.arrived)))

    @precondition(lambda self: len(self.in_flight) > 1)
    @rule(data=st.data())
    def arrive_early(self, data: st.DataObject) -> None:
        assert not self.incoming.take(*data.draw(st.sampled_from(self.in_flight[1:])))

        self.gap |= len(self.written) not in self.gaps
        self.gaps.add(len(self.written))

    @rule(num_more=st.integers(1, 9))
    def arrive_unasked(self, num_more: int) -> None:
        too_much = bytes(self.granted - len(self.written) + num_more)

        with pytest.raises(ProtocolError, match="bytes were asked for, got"):
            self.incoming.take(len(self.written), [too_much])

    @rule()
    def lose_the_connection(self) -> None:
        self.incoming.interrupted()

        self.in_flight.clear()
        self.granted = len(self.written)

    @invariant()
    def what_is_here_is_what_was_sent(self) -> None:
        assert self.written == self.whole[: len(self.written)]
        assert self.incoming.digest == _digest(self.written)
        assert self.incoming.underway == self.granted - len(self.written)
        assert self.incoming.complete is (self.written == self.whole)

    def teardown(self) -> None:
        while not self.incoming.complete:
            self.ask(8)
            self.arrive()
        assert self.written == self.whole


TestTransfer = Transfer.TestCase


def test_the_next_range_is_asked_for_before_the_last_one_is_here() -> None:
    incoming = Incoming(100, lambda *_: None)

    assert incoming.wanted(16) == (0, 16)
    assert incoming.wanted(16) is None
    assert incoming.take(0, [bytes(7)])
    assert incoming.wanted(16) is None
    assert incoming.take(7, [bytes(1)])
    assert incoming.wanted(16) == (16, 24)
    assert incoming.wanted(16) is None


def test_a_stream_that_is_not_what_was_sent_begins_anew_twice() -> None:
    written: list[tuple[int, Frame]] = []
    incoming = Incoming(2, lambda offset, frames: written.append((offset, frames[0])))

    for attempt, goes_on in ((b"xx", True), (b"yy", True), (b"zz", False)):
        assert incoming.wanted(16) == (0, 2)
        assert incoming.take(0, [attempt])
        assert incoming.digest == _digest(attempt)
        assert incoming.again() is goes_on
        assert not incoming.complete

    assert written == [(0, b"xx"), (0, b"yy"), (0, b"zz")]


def test_a_stream_of_nothing_is_here_at_once() -> None:
    incoming = Incoming(0, lambda *_: None)

    assert incoming.complete
    assert incoming.wanted(16) is None
    assert incoming.digest == _digest(b"")
