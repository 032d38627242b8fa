import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flare_core import Plan, ProtocolError, Refusal
from flare_core.communication import (
    Aborted,
    Bye,
    Checked,
    Chunk,
    Commit,
    Committed,
    Frame,
    Hello,
    Incoming,
    Leave,
    Mailbox,
    Offer,
    Outgoing,
    Parcel,
    Pong,
    Propose,
    Refused,
    Session,
    Start,
    ToServer,
    ToSite,
    Want,
    Welcome,
    decode_to_server,
    encode,
)

pytestmark = pytest.mark.usefixtures("small_chunks")

_HELLO = Hello(site="a", session=bytes(16))
_WELCOME = Welcome(plan=Plan(rounds=1), run="r")
_KNOWN = Hello(site="a", session=bytes(16), run="r", connection=1)
_LEAVE = Leave(metrics={})
_UPDATE = b"0123456789abcdefghijklmnopqrstuvwxyz"
_OFFER = Offer(stream=b"u" * 16, num_bytes=len(_UPDATE), round_number=0)
_COMMIT = Commit(stream=b"u" * 16, digest=xxhash.xxh3_128_digest(_UPDATE))
_REFUSED = Refused(
    refusal=Refusal(reason="update", site="a", what="w", expected="", got="", advice="")
)


def _start(round_number: int) -> Start:
    return Start(round_number=round_number, stream=bytes(16), num_bytes=1)


@pytest.fixture
def session() -> Session:
    """A session that was welcomed."""
    session = Session(_HELLO)
    session.ask(_HELLO, Welcome)
    assert _said(session) == [_HELLO]
    assert _heard(session, _WELCOME) == (_WELCOME,)
    return session


def _said(session: Session) -> list[ToServer | Chunk]:
    """Return what the session would say, as its carrier does."""
    frames = list(session.outbox)
    session.outbox.clear()
    return [decode_to_server(one) for one in frames]


def _heard(session: Session, message: ToSite | Chunk) -> object:
    return session.receive(encode(message))


def test_a_request_is_open_until_it_is_answered(session: Session) -> None:
    session.ask(_LEAVE, Bye)

    assert _heard(session, Pong()) is None
    assert _heard(session, Propose()) is None  # not to this one
    assert _heard(session, Bye()) == (Bye(),)
    assert _heard(session, Bye()) is None
    assert _said(session) == [_LEAVE]


@pytest.mark.parametrize("news", [Aborted(reason="over"), _REFUSED])
def test_bad_news_answers_whatever_is_open_and_nothing_too(
    news: ToSite, session: Session
) -> None:
    assert _heard(session, news) == (news,)
    session.ask(_LEAVE, Bye)
    assert _heard(session, news) == (news,)
    session.send(_OFFER, [_UPDATE], Start)
    assert _heard(session, news) == (news,)
    session.fetch(bytes(16), Incoming(9, lambda *_: None))
    assert _heard(session, news) == (news,)


@pytest.mark.parametrize("last", [Bye(), Checked(), Aborted(reason="over"), _REFUSED])
def test_a_server_has_parted_after_its_last_word_only(
    last: ToSite, session: Session
) -> None:
    session.ask(_LEAVE, Bye)
    for message in (Propose(), Committed(stream=bytes(16)), Pong(), _start(0)):
        _heard(session, message)
        assert not session.parted

    _heard(session, last)

    assert session.parted


def test_what_is_no_message_is_an_error(session: Session) -> None:
    with pytest.raises(ProtocolError):
        session.receive([b"garbage"])
    with pytest.raises(ProtocolError):
        session.receive(encode(Leave(metrics={})))


def test_a_start_that_was_heard_already_is_no_answer(session: Session) -> None:
    session.send(_OFFER, [_UPDATE], Start)
    assert _heard(session, _start(1)) == (_start(1),)

    session.send(_OFFER, [_UPDATE], Start)

    assert _heard(session, _start(1)) is None
    assert _heard(session, _start(0)) is None
    assert _heard(session, _start(2)) == (_start(2),)


def test_after_a_break_a_request_is_repeated_behind_a_hello(session: Session) -> None:
    session.ask(_LEAVE, Bye)

    for _ in range(2):  # what was not even sent counts once
        session.connected()

    twice = msgspec.structs.replace(_KNOWN, connection=2)
    assert _said(session) == [twice, _LEAVE]
    assert _heard(session, _WELCOME) is None  # nobody asked for it
    assert _heard(session, Bye()) == (Bye(),)


def test_after_a_break_the_first_hello_is_not_said_twice() -> None:
    session = Session(_HELLO)
    session.ask(_HELLO, Welcome)

    session.connected()

    assert _said(session) == [msgspec.structs.replace(_HELLO, connection=1)]
    assert _heard(session, _WELCOME) == (_WELCOME,)


def test_after_a_break_with_nothing_open_only_a_hello_is_said(session: Session) -> None:
    session.connected()

    assert _said(session) == [_KNOWN]
    assert _heard(session, _WELCOME) is None


def test_what_was_given_up_is_not_repeated(session: Session) -> None:
    session.send(_OFFER, [_UPDATE], Start)

    session.give_up()
    session.connected()

    assert _said(session) == [_KNOWN]
    want = Want(stream=_OFFER.stream, start=0, stop=9)
    assert _heard(session, want) is None
    assert _said(session) == []


def test_an_update_is_sent_as_it_is_asked_for_and_then_committed(
    session: Session,
) -> None:
    session.send(_OFFER, [_UPDATE[:10], _UPDATE[10:]], Start)
    assert _said(session) == [_OFFER]

    _heard(session, Want(stream=b"?" * 16, start=0, stop=8))
    assert _said(session) == []
    _heard(session, Want(stream=_OFFER.stream, start=0, stop=16))
    assert _contents(_said(session)) == _UPDATE[:16]
    _heard(session, Want(stream=_OFFER.stream, start=16, stop=len(_UPDATE)))
    *chunks, last = _said(session)
    assert _contents(chunks) == _UPDATE[16:]
    assert last == _COMMIT
    assert _heard(session, Committed(stream=_OFFER.stream)) is None
    assert _heard(session, _start(1)) == (_start(1),)


def _contents(messages: list[ToServer | Chunk]) -> bytes:
    chunks = [one for one in messages if isinstance(one, Chunk)]
    assert len(chunks) == len(messages)
    return b"".join(b"".join(chunk.frames) for chunk in chunks)


def test_an_update_whose_commit_was_lost_is_committed_after_the_break(
    session: Session,
) -> None:
    session.send(_OFFER, [_UPDATE], Start)
    _heard(session, Want(stream=_OFFER.stream, start=0, stop=len(_UPDATE)))
    session.outbox.clear()

    session.connected()

    assert _said(session) == [_KNOWN, _OFFER, _COMMIT]


def test_an_update_that_has_arrived_is_offered_again_and_still_held(
    session: Session,
) -> None:
    session.send(_OFFER, [_UPDATE], Start)
    _heard(session, Want(stream=_OFFER.stream, start=0, stop=len(_UPDATE)))
    _heard(session, Committed(stream=_OFFER.stream))
    session.outbox.clear()

    session.connected()

    assert _said(session) == [_KNOWN, _OFFER, _COMMIT]  # the start may be lost
    _heard(session, Want(stream=_OFFER.stream, start=0, stop=8))
    assert _contents(_said(session)) == _UPDATE[:8]  # the server may have lost it
    assert _heard(session, _start(1)) == (_start(1),)


def test_a_short_update_goes_along_with_its_offer(session: Session) -> None:
    offer = Offer(stream=bytes(16), num_bytes=2, round_number=0)
    digest = xxhash.xxh3_128_digest(b"ab")

    session.send(offer, [b"a", b"b"], Start)

    said = _said(session)
    assert said == [
        Offer(stream=bytes(16), num_bytes=2, round_number=0, short=b"ab"),
        Commit(stream=bytes(16), digest=digest),
    ]
    session.connected()
    assert _said(session) == [_KNOWN, *said]


class _Model:
    """A model on its way to a session, and what of it was written."""

    def __init__(self, content: bytes = _UPDATE) -> None:
        self.content = content
        self.stream = xxhash.xxh3_128_digest(content)
        self.written = bytearray(len(content))
        self.incoming = Incoming(len(content), self._write)

    def chunks(self, want: ToServer | Chunk) -> Iterator[Chunk]:
        assert isinstance(want, Want)
        assert want.stream == self.stream
        for offset, frames in Outgoing([self.content]).chunks(want.start, want.stop):
            yield Chunk(self.stream, offset, frames)

    def _write(self, offset: int, frames: object) -> None:
        assert isinstance(frames, list)
        joined = b"".join(frames)
        self.written[offset : offset + len(joined)] = joined


def test_a_model_is_asked_for_and_answers_when_it_is_whole(session: Session) -> None:
    model = _Model()
    session.fetch(model.stream, model.incoming)

    (want,) = _said(session)
    *chunks, last = model.chunks(want)
    for chunk in (*chunks, chunks[0], Chunk(bytes(16), len(_UPDATE) - 4, [b"else"])):
        assert _heard(session, chunk) is None

    assert _heard(session, last) == (None,)
    assert model.written == _UPDATE
    assert _heard(session, last) is None


def test_a_model_goes_on_where_its_connection_broke(session: Session) -> None:
    model = _Model()
    session.fetch(model.stream, model.incoming)
    (want,) = _said(session)
    first, second, *_ = model.chunks(want)
    _heard(session, first)
    _heard(session, second)

    session.connected()

    hello, rest = _said(session)
    assert hello == _KNOWN
    assert rest == Want(stream=model.stream, start=16, stop=len(_UPDATE))
    assert _heard(session, _WELCOME) is None
    assert [_heard(session, chunk) for chunk in model.chunks(rest)][-1] == (None,)
    assert model.written == _UPDATE


def test_a_newer_model_answers_in_place_of_one_that_is_gone(session: Session) -> None:
    model = _Model()
    session.send(_OFFER, [_UPDATE], Start)
    assert _heard(session, _start(1)) == (_start(1),)
    session.fetch(model.stream, model.incoming)

    assert _heard(session, _start(1)) is None
    assert _heard(session, _start(2)) == (_start(2),)


@pytest.mark.parametrize("num_damaged", [0, 1, 2])
def test_a_model_that_was_changed_on_its_way_is_asked_for_anew(
    num_damaged: int, session: Session
) -> None:
    model = _Model()
    session.fetch(model.stream, model.incoming)

    for _ in range(num_damaged):
        assert _answers(session, model, damaged=True) == [None] * 5

    assert _answers(session, model, damaged=False) == [None] * 4 + [(None,)]
    assert model.written == _UPDATE


def _answers(session: Session, model: _Model, *, damaged: bool) -> list[object]:
    """Send a model whole, and return what each chunk was an answer to."""
    (want,) = _said(session)
    chunks = list(model.chunks(want))
    if damaged:
        chunks[1] = Chunk(model.stream, chunks[1].offset, [b"!" * 8])
    return [_heard(session, chunk) for chunk in chunks]


def test_a_model_that_is_changed_again_and_again_is_an_error(session: Session) -> None:
    model = _Model()
    session.fetch(model.stream, model.incoming)
    for _ in range(2):
        _answers(session, model, damaged=True)

    with pytest.raises(ProtocolError, match="changes bytes"):
        _answers(session, model, damaged=True)


class _Server:
    """Takes one update in over connections that break, as the real one does."""

    def __init__(self, path: Path) -> None:
        self.mailbox = Mailbox()
        self.parcel: Parcel | None = None
        self._path = path

    def answers(self, message: ToServer | Chunk) -> Iterator[ToSite]:
        match message:
            case Hello():
                yield _WELCOME
            case Offer() if self.mailbox.has("a", message.stream):
                yield Committed(stream=message.stream)
                yield _start(1)
            case Offer():
                self.mailbox.open("a", message, self._path)
            case Chunk():
                self.mailbox.take("a", message)
            case Commit():
                parcel = self.mailbox.commit("a", message)
                if parcel is not None:
                    assert self.parcel is None  # it counts once
                    self.parcel = parcel
                    yield Committed(stream=message.stream)
                    yield _start(1)
        yield from (want for _, want in self.mailbox.wants())


_BREAKS = st.lists(st.integers(0, 30), max_size=6)
"""Messages that arrive, either way, before the connection breaks again."""


@given(st.binary(min_size=3, max_size=100), _BREAKS)
def test_an_update_arrives_once_however_often_the_connection_breaks(
    content: bytes, breaks: list[int]
) -> None:
    session = Session(_HELLO)
    stream = b"u" * 16
    answer = None
    with tempfile.TemporaryDirectory() as folder:
        server = _Server(Path(folder, "a"))
        offer = Offer(stream=stream, num_bytes=len(content), round_number=0)
        session.send(offer, [content], Start)
        while answer is None:
            answer = _talk(session, server, breaks.pop(0) if breaks else 1000)
            session.connected()
        server.mailbox.close()

        assert server.parcel is not None
        assert bytes(server.parcel.contents()) == content
    assert answer == (_start(1),)


def _talk(session: Session, server: _Server, num_messages: int) -> object:
    """Carry so many messages; those that are still on their way then are lost."""
    to_site: list[list[Frame]] = []
    for _ in range(num_messages):
        if session.outbox:
            message = decode_to_server(session.outbox.popleft())
            to_site += map(encode, server.answers(message))
        elif to_site:
            answer = session.receive(to_site.pop(0))
            if answer is not None:
                return answer
        else:
            break
    assert num_messages < 1000  # they do not wait for each other
    return None


@given(st.binary(min_size=1, max_size=200), _BREAKS)
def test_a_model_arrives_however_often_the_connection_breaks(
    content: bytes, breaks: list[int]
) -> None:
    session, model = Session(_HELLO), _Model(content)
    session.fetch(model.stream, model.incoming)
    answer = None

    while answer is None:
        num_messages = breaks.pop(0) if breaks else 1000
        for chunk in _served(session, model, num_messages):
            answer = answer or _heard(session, chunk)
        session.connected()

    assert answer == (None,)
    assert model.written == content


def _served(session: Session, model: _Model, num_chunks: int) -> Iterator[Chunk]:
    """Yield so many chunks of what is asked for, and lose the rest."""
    while session.outbox:
        message = decode_to_server(session.outbox.popleft())
        if isinstance(message, Want):
            for chunk in model.chunks(message):
                if not num_chunks:
                    return
                num_chunks -= 1
                yield chunk
