import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flare_core import Layout, ModelState, Plan, ProtocolError, Refusal
from flare_core._plan import Schedule, Selection, StrategySettings
from flare_core.communication import (
    Aborted,
    Bye,
    Checked,
    Hello,
    Initial,
    Join,
    Leave,
    Ping,
    Pong,
    Propose,
    Refused,
    Start,
    ToServer,
    ToSite,
    Trained,
    Welcome,
    decode_to_server,
    decode_to_site,
    encode,
)
from strategies import states

_COUNTS = st.integers(1, 2**32)
_METRICS = st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3)
_TEXT = st.text(max_size=20)
_SITE = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    sites = draw(_COUNTS)
    lengths = {
        draw(st.sampled_from(["every_n_epochs", "every_n_steps"])): draw(_COUNTS)
    }
    return Plan(
        rounds=draw(_COUNTS),
        schedule=Schedule(**draw(st.sampled_from([{}, lengths]))),
        strategy=StrategySettings(mu=draw(st.floats(0, 1))),
        selection=Selection(
            sites=sites, quorum=draw(st.none() | st.integers(1, sites))
        ),
        select=draw(st.none() | _TEXT | st.lists(_TEXT, max_size=3)),
        optimizer_state=draw(st.sampled_from([None, "keep", "reset"])),
    )


_JOINS = st.builds(
    lambda state, base, horizon: Join(
        layout=state.layout, base=base, horizon=horizon, stays=state.layout.tensors
    ),
    states(),
    _TEXT,
    _TEXT,
)
_TO_SERVER: st.SearchStrategy[ToServer] = st.one_of(
    st.builds(Hello, site=_SITE, protocol=st.integers(0, 9)),
    _JOINS,
    st.just(Initial()),
    st.builds(
        Trained,
        round_number=st.integers(0, 2**32),
        num_examples=st.integers(-1, 2**32),
        metrics=_METRICS,
        global_metrics=_METRICS,
    ),
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
    st.builds(Welcome, plan=_plans()),
    st.just(Propose()),
    st.builds(Start, round_number=st.integers(0, 2**32), final=st.booleans()),
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


def _message(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@given(st.binary(max_size=64))
@example(b"")
@example(_message(type="Gossip"))
@example(_message(type="Hello"))
@example(_message(type="Hello", site=3))
@example(_message(type="Hello", site=""))
@example(_message(type="Hello", site="../a"))
@example(_message(type="Start", round_number="1"))
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
            decode(frame)


@given(st.one_of(_TO_SERVER, _TO_SITE), st.data())
def test_a_damaged_message_is_a_message_or_a_protocol_error(
    message: ToServer | ToSite, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    where = data.draw(st.integers(0, len(frame) - 1))
    frame[where] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(where, len(frame)))

    for decode in (decode_to_server, decode_to_site):
        try:
            found = decode(bytes(frame[:cut]))
        except ProtocolError:
            continue
        assert decode(encode(found)) is not None


def test_a_message_of_the_other_side_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode_to_server(encode(Welcome(plan=Plan(rounds=1))))
    with pytest.raises(ProtocolError):
        decode_to_site(encode(Join(layout=Layout(()))))


def test_a_layout_arrives_with_its_hash() -> None:
    layout = ModelState({"w": [1.0], "n": [1]}).layout

    arrived = decode_to_server(encode(Join(layout=layout)))

    assert isinstance(arrived, Join)
    assert arrived.layout.hash == layout.hash
