import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from flare_core import DTYPES, ModelState, ProtocolError
from flare_core.communication import Frame, digest, pack, unpack
from strategies import from_bits, states, to_bits

_deserialize: Callable[[bytes], Any] = safetensors.deserialize
_KNOWN_TO_NUMPY = tuple(code for code in DTYPES if DTYPES[code].isbuiltin == 1)


def _through_the_wire(state: ModelState) -> ModelState:
    frames = [bytes(frame) for frame in pack(state)]
    return unpack(frames, classes=state.layout.classes)


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
    file = b"".join(pack(state))

    found = dict(_deserialize(file))

    assert set(found) == set(state)
    for spec, body in zip(state.layout.tensors, pack(state)[1:], strict=True):
        assert found[spec.name]["dtype"] == spec.dtype
        assert tuple(found[spec.name]["shape"]) == spec.shape
        assert bytes(found[spec.name]["data"]) == bytes(body)


@given(states(_KNOWN_TO_NUMPY))
def test_safetensors_reads_the_arrays_we_wrote(state: ModelState) -> None:
    found = safetensors.numpy.load(b"".join(pack(state)))

    assert set(found) == set(state)
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert to_bits(found[name]) == to_bits(array)


@given(states(_KNOWN_TO_NUMPY))
def test_we_read_the_file_that_safetensors_wrote(state: ModelState) -> None:
    file = safetensors.numpy.save(dict(state))
    body = 8 + int.from_bytes(file[:8], "little")
    offsets = [entry["data_offsets"] for entry in json.loads(file[8:body]).values()]
    frames = [file[:body], *(file[body + i : body + j] for i, j in offsets)]

    found = unpack(frames, classes=state.layout.classes)

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
    frames = pack(ModelState({"w": np.zeros(4, DTYPES[code])}))

    arrived = unpack([memoryview(bytearray(frame)) for frame in frames])

    assert not arrived["w"].flags.writeable


def test_a_packed_tensor_that_does_not_fill_whole_bytes_is_named() -> None:
    state = ModelState({"odd": np.zeros(3, ml_dtypes.float4_e2m1fn)})

    with pytest.raises(ValueError, match=r"tensor 'odd': F4 \(3,\)"):
        pack(state)


def test_the_digest_is_that_of_the_joined_file() -> None:
    frames = pack(ModelState({"w": np.arange(6.0), "n": np.asarray(3)}))

    assert digest(frames) == hashlib.sha256(b"".join(frames)).hexdigest()


@given(st.lists(st.binary(max_size=64), max_size=4))
@example([])
@example([b"\0" * 8])
@example([_header("[" * 100_000)])
@example([_header('{"__metadata__":' + "[" * 100_000 + "]" * 100_000 + "}")])
@example([_header('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"), b""])
@example([_one("F32", f"[0,{2**70}]", 0), b""])
@example([_one("F32", f"[0,{2**62}]", 0), b""])
@example([_one("U8", str([1] * 70), 1), b"\0"])
@example([_one("F33", "[1]", 4), b"\0" * 4])
@example([_one("F32", "[-1]", 4), b"\0" * 4])
@example([_one("F32", "[2]", 4), b"\0" * 4])
@example([_one("F4", "[3]", 2), b"\0" * 2])
@example([_one("F32", "[1.5]", 4), b"\0" * 4])
@example([_header('{"w":"\xff"}'), b""])
@example([_one("F32", "[1]", 8), b"\0" * 4])
@example([_one("F32", "[2]", 4), b"\0" * 8])
@example([_header('{"__metadata__":{}}'), b""])
def test_garbage_is_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        unpack(frames)


@st.composite
def _damaged(draw: st.DrawFn) -> Sequence[Frame]:
    """Frames of a model with a byte changed, a frame cut, lost, repeated or moved."""
    frames = [bytes(frame) for frame in pack(draw(states()))]
    for _ in range(draw(st.integers(1, 3))):
        if not frames:
            return frames
        at = draw(st.integers(0, len(frames) - 1))
        match draw(st.sampled_from(["change", "cut", "lose", "repeat", "move"])):
            case "change" if frames[at]:
                where = draw(st.integers(0, len(frames[at]) - 1))
                value = draw(st.binary(min_size=1, max_size=1))
                frames[at] = frames[at][:where] + value + frames[at][where + 1 :]
            case "cut":
                frames[at] = frames[at][: draw(st.integers(0, len(frames[at])))]
            case "lose":
                del frames[at]
            case "repeat":
                frames.append(frames[at])
            case "move":
                frames.append(frames.pop(at))
    return frames


@given(_damaged())
def test_a_damaged_model_is_a_model_or_a_protocol_error(
    frames: Sequence[Frame],
) -> None:
    try:
        state = unpack(frames)
    except ProtocolError:
        return

    assert _through_the_wire(state).layout == state.layout


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_lost_frame_is_noticed(at: int) -> None:
    frames = pack(ModelState({"a": np.zeros(2), "b": np.zeros(2)}))
    del frames[at]

    with pytest.raises(ProtocolError):
        unpack(frames)


def test_a_tensor_of_the_wrong_length_is_named() -> None:
    header, _ = pack(ModelState({"fc.weight": np.zeros((2, 3), np.float32)}))

    with pytest.raises(ProtocolError, match=r"tensor 'fc\.weight': .*24.*20"):
        unpack([header, b"\0" * 20])


def test_no_warning_is_given_for_any_bits() -> None:
    raw = np.arange(2**16, dtype=np.uint16).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        _through_the_wire(ModelState({"w": from_bits("BF16", (2**16,), raw)}))
