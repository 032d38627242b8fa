import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from drawn import from_bits, states, to_bits
from flare_core import DTYPES, ModelState, ProtocolError
from flare_core.communication import file_bytes, header, header_bytes, pack, unpack

_deserialize: Callable[[bytes], Any] = safetensors.deserialize
_KNOWN_TO_NUMPY = tuple(code for code in DTYPES if DTYPES[code].isbuiltin == 1)


def _file(state: ModelState) -> bytes:
    return b"".join(pack(state))


def _through_the_wire(state: ModelState) -> ModelState:
    return unpack(_file(state), classes=state.layout.classes)


def _header(content: str) -> bytes:
    text = content.encode()
    return len(text).to_bytes(8, "little") + text


def _one(dtype: str, shape: str, end: int) -> bytes:
    return _header(
        f'{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}'
    )


@given(states())
def test_a_model_survives_the_wire_bit_for_bit(state: ModelState) -> None:
    arrived = _through_the_wire(state)

    assert arrived.layout == state.layout
    for name in state:
        assert to_bits(arrived[name]) == to_bits(state[name])


@pytest.mark.parametrize("code", DTYPES)
def test_every_bit_pattern_of_every_type_survives_the_wire(code: str) -> None:
    rng = np.random.default_rng(0)
    size = DTYPES[code].itemsize
    some = np.arange(256 * size) if size == 1 else rng.integers(0, 256, 4096 * size)
    if size == 2:  # all of them
        some = np.arange(2**16, dtype=np.uint16).view(np.uint8)
    raw = some.astype(np.uint8).tobytes()
    state = ModelState({"w": from_bits(code, (len(raw) // size,), raw)})

    arrived = _through_the_wire(state)

    assert to_bits(arrived["w"]) == to_bits(state["w"])


@given(states())
@example(ModelState({}))
@example(ModelState({"scalar": np.float32(3), "empty": np.zeros((0, 3))}))
def test_joined_frames_are_a_safetensors_file(state: ModelState) -> None:
    found = dict(_deserialize(_file(state)))

    assert set(found) == set(state)
    for spec, body in zip(state.layout.tensors, pack(state)[1:], strict=True):
        assert found[spec.name]["dtype"] == spec.dtype
        assert tuple(found[spec.name]["shape"]) == spec.shape
        assert bytes(found[spec.name]["data"]) == bytes(body)


@given(states(_KNOWN_TO_NUMPY))
def test_safetensors_reads_the_arrays_we_wrote(state: ModelState) -> None:
    found = safetensors.numpy.load(_file(state))

    assert set(found) == set(state)
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert to_bits(found[name]) == to_bits(array)


@given(states(_KNOWN_TO_NUMPY))
def test_we_read_the_file_that_safetensors_wrote(state: ModelState) -> None:
    file = safetensors.numpy.save(dict(state))

    found = unpack(file, classes=state.layout.classes)

    assert found.layout == state.layout
    for name, array in state.items():
        assert to_bits(found[name]) == to_bits(array)


def test_a_tensor_starts_where_its_elements_are_aligned() -> None:
    state = ModelState({"b": np.zeros(3, "u1"), "a": [0.0] * 3, "c": np.float32(0)})

    frames = pack(state)

    assert [len(frame) % 8 for frame in frames[:2]] == [0, 0]
    assert [len(frame) for frame in frames[1:]] == [24, 4, 3]


def test_frames_are_views_of_the_arrays() -> None:
    array = np.zeros(4, np.float32)

    _, body = pack(ModelState({"w": array}))
    array[0] = 1

    assert bytes(body) == array.tobytes()


@pytest.mark.parametrize("code", ["F32", "F4"])
def test_what_arrives_cannot_be_written_to(code: str) -> None:
    file = _file(ModelState({"w": np.zeros(4, DTYPES[code])}))

    arrived = unpack(memoryview(bytearray(file)))

    assert not arrived["w"].flags.writeable


def test_what_arrives_is_a_view_of_the_file() -> None:
    file = bytearray(_file(ModelState({"w": np.zeros(2, np.float32)})))

    arrived = unpack(memoryview(file))
    file[-4:] = np.float32(7).tobytes()

    assert arrived["w"].tolist() == [0, 7]


@given(states())
@example(ModelState({}))
def test_a_layout_tells_the_header_and_the_size_before_there_is_a_file(
    state: ModelState,
) -> None:
    file = _file(state)

    assert file_bytes(state.layout) == len(file)
    assert file[: header_bytes(file)] == header(state.layout.tensors)


def test_a_packed_tensor_that_does_not_fill_whole_bytes_is_named() -> None:
    state = ModelState({"odd": np.zeros(3, ml_dtypes.float4_e2m1fn)})

    with pytest.raises(ValueError, match=r"tensor 'odd': F4 \(3,\)"):
        pack(state)


_TWO = _header(
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    '"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
)
_TWICE = _TWO.replace(b"[2,3]", b"[0,1]")


@given(st.binary(max_size=64))
@example(b"")
@example(b"\0" * 8)
@example(b"\xff" * 8)
@example(_header("[" * 100_000))
@example(_header('{"__metadata__":' + "[" * 100_000 + "]" * 100_000 + "}"))
@example(_header('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"))
@example(_one("F32", f"[0,{2**70}]", 0))
@example(_one("F32", f"[0,{2**62}]", 0))
@example(_one("U8", str([1] * 70), 1) + b"\0")
@example(_one("F33", "[1]", 4) + b"\0" * 4)
@example(_one("F32", "[-1]", 4) + b"\0" * 4)
@example(_one("F32", "[2]", 4) + b"\0" * 4)
@example(_one("F4", "[3]", 2) + b"\0" * 2)
@example(_one("F32", "[1.5]", 4) + b"\0" * 4)
@example(_header('{"w":"\xff"}'))
@example(_one("F32", "[1]", 8) + b"\0" * 4)
@example(_one("F32", "[2]", 4) + b"\0" * 8)
@example(_one("F32", "[1]", 2**70) + b"\0" * 4)
@example(_one("F32", "[]", -1) + b"\0" * 4)
@example(_header('{"__metadata__":{}}') + b"\0")
@example(_TWO + b"\0" * 3)  # a byte that belongs to nobody
@example(_TWICE + b"\0")  # one that belongs to two
def test_garbage_is_a_protocol_error(file: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(file)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A file with bytes changed, lost, repeated or moved, as no transport may do."""
    file = _file(draw(states()))
    for _ in range(draw(st.integers(1, 3))):
        start, stop = sorted(
            draw(st.tuples(st.integers(0, len(file)), st.integers(0, len(file))))
        )
        head, some, tail = file[:start], file[start:stop], file[stop:]
        match draw(st.sampled_from(["change", "cut", "lose", "repeat", "move"])):
            case "change":
                value = draw(st.binary(min_size=1, max_size=1))
                file = head + value + file[start + 1 :]
            case "cut":
                file = head
            case "lose":
                file = head + tail
            case "repeat":
                file = head + some + some + tail
            case "move":
                file = head + tail + some
    return file


@given(_damaged())
def test_a_damaged_model_is_a_model_or_a_protocol_error(file: bytes) -> None:
    try:
        state = unpack(file)
    except ProtocolError:
        return

    assert _through_the_wire(state).layout == state.layout


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": np.zeros(2), "b": np.zeros(2, "f4")},
        {"a": np.zeros(3, "u1"), "b": np.zeros((0, 4))},
        {"packed": np.zeros(4, ml_dtypes.float4_e2m1fn)},
        {},
    ],
    ids=["two tensors", "one is empty", "packed", "none"],
)
def test_a_file_that_is_shorter_or_longer_is_noticed_at_every_byte(
    tensors: Mapping[str, npt.ArrayLike],
) -> None:
    file = _file(ModelState(tensors))

    for damaged in (*(file[:end] for end in range(len(file))), file + b"\0"):
        with pytest.raises(ProtocolError):
            unpack(damaged)


def test_a_tensor_of_the_wrong_length_is_named() -> None:
    file = _one("F32", "[2,3]", 20) + b"\0" * 20

    with pytest.raises(ProtocolError, match=r"tensor 'w': .*\(2, 3\).*24.*20"):
        unpack(file)


def test_no_warning_is_given_for_any_bits() -> None:
    raw = np.arange(2**16, dtype=np.uint16).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        _through_the_wire(ModelState({"w": from_bits("BF16", (2**16,), raw)}))
