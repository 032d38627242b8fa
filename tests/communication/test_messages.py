import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drawn import states
from flare_core import Layout, ModelState, Plan, ProtocolError, Refusal, TensorSpec
from flare_core._local import FedProx, Plain
from flare_core._plan import (
    AggregationSettings,
    Schedule,
    StrategySettings,
)
from flare_core._selection import Selection
from flare_core.communication import (
    CHUNK_BYTES,
    INITIAL,
    Aborted,
    Bye,
    Checked,
    Chunk,
    Commit,
    Committed,
    Delta,
    Frame,
    Hello,
    Join,
    Leave,
    Offer,
    Ping,
    Pong,
    Propose,
    Refused,
    Start,
    ToServer,
    ToSite,
    Want,
    Welcome,
    decode_to_server,
    decode_to_site,
    encode,
)

_COUNTS = st.integers(1, 2**32)
_METRICS = st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3)
_TEXT = st.text(max_size=20)
_ID = st.binary(min_size=16, max_size=16)
_NUM_BYTES = st.integers(0, 2**62 - 1)
_ROUND = st.integers(0, 2**32)
_SITE = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)

_VALUE = st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | _TEXT
_SETTINGS = st.dictionaries(_TEXT, _VALUE, max_size=3)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    sites = draw(_COUNTS)
    lengths = {
        draw(st.sampled_from(["every_n_epochs", "every_n_steps"])): draw(_COUNTS)
    }
    return Plan(
        rounds=draw(_COUNTS),
        schedule=Schedule(**draw(st.sampled_from([{}, lengths]))),
        aggregation=AggregationSettings(settings=draw(_SETTINGS)),
        strategy=StrategySettings(settings=draw(_SETTINGS)),
        local=draw(st.builds(Plain) | st.builds(FedProx, mu=st.floats(0, 1))),
        selection=Selection(
            sites=sites, quorum=draw(st.none() | st.integers(1, sites))
        ),
        select=draw(st.none() | _TEXT | st.lists(_TEXT, max_size=3)),
        optimizer_state=draw(st.sampled_from([None, "keep", "reset"])),
    )


_JOINS = st.builds(
    lambda state, plan, base, horizon: Join(
        layout=state.layout,
        plan=plan.fingerprint,
        base=base,
        horizon=horizon,
        stays=state.layout.tensors,
    ),
    states(),
    _plans(),
    _TEXT,
    _TEXT,
)
_WANTS = st.builds(Want, stream=_ID, start=_NUM_BYTES, stop=_NUM_BYTES)
_TO_SERVER: st.SearchStrategy[ToServer] = st.one_of(
    st.builds(Hello, site=_SITE, session=_ID, run=_TEXT, protocol=st.integers(0, 9)),
    _JOINS,
    st.builds(
        Offer,
        stream=_ID,
        num_bytes=_NUM_BYTES,
        round_number=st.just(INITIAL) | _ROUND,
        num_examples=st.integers(-1, 2**32),
        num_steps=st.integers(-1, 2**32),
        metrics=_METRICS,
        global_metrics=_METRICS,
        base=st.just(b"") | _ID,
        error=st.floats(0, 1),
        layout=st.none() | states().map(lambda state: state.layout),
        short=st.binary(max_size=64),
    ),
    st.builds(Commit, stream=_ID, digest=_ID),
    _WANTS,
    st.builds(Leave, metrics=_METRICS, reason=_TEXT, failed=st.booleans()),
    st.just(Ping()),
)
_REFUSALS = st.builds(
    Refusal,
    reason=st.sampled_from(["layout", "base", "schedule", "update"]),
    site=_TEXT,
    what=_TEXT,
    expected=_TEXT,
    got=_TEXT,
    advice=_TEXT,
)
_TO_SITE: st.SearchStrategy[ToSite] = st.one_of(
    st.builds(Welcome, plan=_plans(), run=_SITE),
    st.just(Propose()),
    _WANTS,
    st.builds(Committed, stream=_ID),
    st.builds(
        Start,
        round_number=_ROUND,
        stream=_ID,
        num_bytes=_NUM_BYTES,
        final=st.booleans(),
        delta=st.none() | st.builds(Delta, base=_ID, stream=_ID, num_bytes=_NUM_BYTES),
        short=st.binary(max_size=64),
    ),
    st.builds(Refused, refusal=_REFUSALS),
    st.builds(Aborted, reason=_TEXT),
    st.just(Checked()),
    st.just(Bye()),
    st.just(Pong()),
)


@given(_TO_SERVER)
def test_what_a_site_says_arrives_at_the_server(message: ToServer) -> None:
    assert decode_to_server(encode(message)) == message


@given(_TO_SITE)
def test_what_the_server_says_arrives_at_the_site(message: ToSite) -> None:
    assert decode_to_site(encode(message)) == message


@given(_ID, _NUM_BYTES, st.lists(st.binary(max_size=64), max_size=4))
@example(bytes(16), 0, [b""])
def test_a_chunk_arrives_at_either_side_in_the_frames_it_was_sent_in(
    stream: bytes, offset: int, frames: list[Frame]
) -> None:
    sent = Chunk(stream, offset, frames)

    for decode in (decode_to_server, decode_to_site):
        assert decode(encode(sent)) == sent


def test_a_chunk_is_not_copied() -> None:
    sent, arrived = bytearray(3), [memoryview(b"D" + bytes(24)), memoryview(b"abc")]

    frames = encode(Chunk(bytes(16), 0, [memoryview(sent)]))
    sent[:] = b"abc"
    chunk = decode_to_server(arrived)

    assert bytes(frames[1]) == b"abc"
    assert isinstance(chunk, Chunk)
    assert chunk.frames[0] is arrived[1]


def test_a_message_longer_than_a_chunk_arrives_in_frames_that_are_not() -> None:
    names = (f"layers.{i:06}.weight" for i in range(60_000))
    layout = Layout(tuple(TensorSpec(name, "F32", (1,)) for name in names))
    join = Join(layout=layout, plan="")

    frames = encode(join)

    assert 1 < len(frames) <= 4
    assert max(map(len, frames)) <= CHUNK_BYTES
    assert decode_to_server(frames) == join


def _message(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@given(st.binary(max_size=64))
@example(b"")
@example(_message(type="Gossip"))
@example(_message(type="Hello"))
@example(_message(type="Hello", site=3))
@example(_message(type="Hello", site=""))
@example(_message(type="Hello", site="a"))
@example(_message(type="Hello", site="a", session=b"short"))
@example(_message(type="Hello", site="../a", session=bytes(16)))
@example(_message(type="Start", round_number="1", stream=bytes(16), num_bytes=1))
@example(_message(type="Want", stream=bytes(16), start=-1, stop=1))
@example(_message(type="Want", stream=bytes(16), start=0, stop=2**62))
@example(_message(type="Offer", stream=bytes(17), num_bytes=1, round_number=0))
@example(_message(type="Offer", stream=bytes(16), num_bytes=-1, round_number=0))
@example(b"D")
@example(b"D" + bytes(23))
@example(b"D" + bytes(25))
@example(b"\x82\xa4type\xa5Hello\xa4site\xa1\xff")  # no UTF-8
@example(b"\x82\xa4type\xa4Ping\xa1x" + b"\x91" * 100_000)  # deep
@example(_message(type="Join", layout=[[["w", "F31", [2]]]]))
@example(_message(type="Join", layout=[[["w", "F32", [-2]]]]))
@example(_message(type="Join", layout=[[["b", "F32", []], ["a", "F32", []]]]))
@example(_message(type="Welcome", plan={"rounds": 0}))
@example(_message(type="Welcome", plan={"rounds": 1, "nodes": 2}))
def test_garbage_is_a_protocol_error(frame: bytes) -> None:
    for decode in (decode_to_server, decode_to_site):
        with pytest.raises(ProtocolError, match="no message of a"):
            decode([frame])


@pytest.mark.parametrize("frames", [[], [b""], [b"", b""], [b"\x80", b"\x80"]])
def test_frames_that_are_none_are_a_protocol_error(frames: list[Frame]) -> None:
    for decode in (decode_to_server, decode_to_site):
        with pytest.raises(ProtocolError, match="no message of a"):
            decode(frames)


@given(st.one_of(_TO_SERVER, _TO_SITE), st.data())
def test_a_damaged_message_is_a_message_or_a_protocol_error(
    message: ToServer | ToSite, data: st.DataObject
) -> None:
    frame = bytearray(b"".join(encode(message)))
    where = data.draw(st.integers(0, len(frame) - 1))
    frame[where] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(where, len(frame)))

    for decode in (decode_to_server, decode_to_site):
        try:
            found = decode([bytes(frame[:cut])])
        except ProtocolError:
            continue
        assert encode(found)


def test_a_message_of_the_other_side_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode_to_server(encode(Welcome(plan=Plan(rounds=1), run="r")))
    with pytest.raises(ProtocolError):
        decode_to_site(encode(Join(layout=Layout(()), plan="")))


@given(_plans())
def test_a_plan_arrives_with_its_fingerprint(plan: Plan) -> None:
    arrived = decode_to_site(encode(Welcome(plan=plan, run="r")))

    assert isinstance(arrived, Welcome)
    assert arrived.plan.fingerprint == plan.fingerprint


def test_a_layout_arrives_with_its_hash() -> None:
    layout = ModelState({"w": [1.0], "n": [1]}).layout

    arrived = decode_to_server(encode(Join(layout=layout, plan="")))

    assert isinstance(arrived, Join)
    assert arrived.layout.hash == layout.hash


@pytest.mark.parametrize("run", ["", "..", "a/../../b", "/etc", "a b", "x" * 65])
def test_a_run_whose_name_is_none_is_not_heard_of(run: str) -> None:
    welcome = Welcome(plan=Plan(rounds=1), run=run)

    with pytest.raises(ProtocolError, match="no message of a server"):
        decode_to_site(encode(welcome))
