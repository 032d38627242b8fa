"""Whatever a peer sends in the place of an encoded model, it is refused by name."""

import json
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from flare_core import ModelState, ProtocolError, TensorSpec
from flare_core.communication._encodings import BLOCK, decode_model, encode_model
from flare_core.communication._safetensors import header

ENCODINGS = ("bf16", "int4", "int8", "topk", "xor")
NUM_ELEMENTS = 101
BASE = ModelState({"fc.w": np.linspace(-1, 1, NUM_ELEMENTS, dtype=np.float32)})
VALUES = ModelState({"fc.w": BASE["fc.w"] * np.float32(1.01)})
TWO = ModelState({**BASE, "fc.b": np.ones(3, np.float16), "n": np.asarray(3)})
LARGE = ModelState({"w": np.zeros(BLOCK + 1, np.float32)})


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _file(*records: bytes, after: bytes = b"") -> memoryview:
    blob = b"".join(_u32(len(one)) + one for one in records) + after
    return memoryview(header([TensorSpec("fc.w", "U8", (len(blob),))]) + blob)


def _topk(*indices: int, count: int | None = None) -> bytes:
    number = _u32(len(indices) if count is None else count)
    return number + np.array(indices, "<u2").tobytes() + b"\0" * 4 * len(indices)


def _zstd(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size))


def _unsized() -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(bytes(404))


def _consume(encoding: str, file: memoryview, base: ModelState = BASE) -> None:
    elements = sum(len(piece.values) for piece in decode_model(encoding, file, base))

    assert elements == sum(spec.num_elements for spec in base.layout.tensors)


HALF = (NUM_ELEMENTS + 1) // 2


@pytest.mark.parametrize(
    ("encoding", "record", "message"),
    [
        ("bf16", b"\0" * 201, "expected 202 more bytes in the record, got 201"),
        ("bf16", b"\0" * 203, "expected the end of the record, got 1 bytes more"),
        ("int8", b"", "expected 4 more bytes in the record, got 0"),
        ("int8", b"\0" * 104, "expected 101 more bytes in the record, got 100"),
        ("int8", b"\0" * 4 + b"\x80" * 101, "codes of -127 to 127, got -128"),
        ("int8", b"\0\0\x80\xbf" + b"\0" * 101, "magnitudes of 0 or more, got -1"),
        ("int4", b"\0" * 4 + b"\x88" * (HALF + 1), "end of the record, got 1 bytes"),
        ("int4", b"\0" * 4 + b"\x80" * HALF, "codes of -7 to 7, got -8"),
        ("int4", b"\0" * 4 + b"\x08" * HALF, "codes of -7 to 7, got -8"),
        ("topk", _topk(count=102), "at most 101 elements in a part, got 102"),
        ("topk", _topk(count=2**32 - 1), "at most 101 elements in a part, got 42949"),
        ("topk", _topk(1, 2, count=3), "expected 12 more bytes in the record, got 6"),
        ("topk", _topk(5, 101), "expected indices below 101, got 101"),
        ("topk", _topk(5, 5), "indices in rising order, got 5 after 5"),
        ("topk", _topk(6, 5), "indices in rising order, got 5 after 6"),
        ("topk", _topk(5) + b"\0", "end of the record, got 1 bytes more"),
        ("xor", b"", "expected a zstd frame of 404 bytes, got none"),
        ("xor", b"garbage!", "expected a zstd frame of 404 bytes, got none"),
        ("xor", _zstd(403), "expected a zstd frame of 404 bytes, got one of 403"),
        ("xor", _zstd(2**20), "expected a zstd frame of 404 bytes, got one of 1048576"),
        ("xor", _zstd(404)[:-1], "expected a zstd frame of 404 bytes, got none"),
        ("xor", _zstd(404) * 2, "expected a zstd frame of 404 bytes, got none"),
        ("xor", _unsized(), "expected a zstd frame of 404 bytes, got one of"),
    ],
)
def test_a_wrong_record_is_refused_by_name(
    encoding: str, record: bytes, message: str
) -> None:
    with pytest.raises(ProtocolError, match=rf"tensor 'fc\.w', .* from 0: .*{message}"):
        _consume(encoding, _file(record))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (_file(), "expected 4 more bytes in the record, got 0"),
        (_file(after=b"\0\0\0"), "expected 4 more bytes in the record, got 3"),
        (_file(after=_u32(500)), "expected a record of 500 bytes, got 0"),
        (_file(bytes(202), after=b"!"), "expected the end .*, got 1 bytes more"),
        (_file(bytes(202), bytes(202)), "expected the end .*, got 206 bytes more"),
    ],
)
def test_records_fill_the_tensor(file: memoryview, message: str) -> None:
    with pytest.raises(ProtocolError, match=rf"tensor 'fc\.w', .*: {message}"):
        _consume("bf16", file)


def _size(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _with_header(**entries: object) -> memoryview:
    text = json.dumps(entries).encode()
    return memoryview(_size(len(text)) + text + bytes(206))


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = _entry("U8", [206], 0, 206)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (_with_header(), r"tensor 'fc\.w': expected in the file, got none"),
        (_with_header(fc=GOOD), r"tensor 'fc\.w': expected in the file, got none"),
        (_with_header(**{"fc.w": GOOD, "x": GOOD}), "tensor 'x': expected no such"),
        (_with_header(**{"fc.w": _entry("I8", [206], 0, 206)}), "got I8"),
        (_with_header(**{"fc.w": _entry("F32", [101], 0, 404)}), "U8 .*got F32"),
        (_with_header(**{"fc.w": _entry("U8", [2, 103], 0, 206)}), r"got U8 \(2, 103"),
        (_with_header(**{"fc.w": _entry("U8", [], 0, 1)}), r"got U8 \(\)"),
        (_with_header(**{"fc.w": _entry("U8", [206], 1, 207)}), r"got \(1, 207\)"),
        (_with_header(**{"fc.w": _entry("U8", [205], 0, 206)}), r"got \(0, 206\)"),
        (_with_header(**{"fc.w": _entry("U8", [207], 0, 207)}), "of 206 in the file"),
        (_with_header(**{"fc.w": _entry("U8", [205], 0, 205)}), "205 .*, got 206"),
        (_with_header(**{"fc.w": _entry("U8", [2**70], 0, 2**70)}), "header|fc"),
        (_with_header(**{"fc.w": _entry("U8", [-1], 0, -1)}), "no safetensors header"),
        (_with_header(**{"fc.w": 3}), "no safetensors header"),
        (_with_header(fc="x" * 100_000), "expected a header of at most"),
        (memoryview(b"\xff" * 100), "expected a header of at most"),
        (memoryview(_size(900) + b"{}"), "a header of at most .* got 908 of 10"),
        (memoryview(b""), "no safetensors header|header of at most"),
    ],
)
def test_a_header_of_another_model_is_refused(file: memoryview, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode_model("bf16", file, BASE)


def test_a_bomb_does_not_go_off() -> None:
    bomb = _zstd(200_000_000)
    file = _file(bomb)

    tracemalloc.start()
    with pytest.raises(ProtocolError, match="got one of 200000000"):
        _consume("xor", file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000


def test_pieces_before_the_damage_arrive() -> None:
    blob = b"".join(_u32(len(one)) + one for one in [bytes(2 * BLOCK), b"\0"])
    file = memoryview(header([TensorSpec("w", "U8", (len(blob),))]) + blob)

    pieces = decode_model("bf16", file, LARGE)

    assert len(next(pieces).values) == BLOCK
    with pytest.raises(ProtocolError, match=f"tensor 'w', elements from {BLOCK}: "):
        next(pieces)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(record=st.binary(max_size=600))
def test_any_record_is_a_block_or_a_protocol_error(
    encoding: str, record: bytes
) -> None:
    with suppress(ProtocolError):
        _consume(encoding, _file(record))


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(garbage=st.binary(max_size=300))
@example(b"[" * 1000)
@example(_size(6) + b'{"a":[')
@example(_size(7) + b'{"\xff":0}')
@example(_size(4009) + b'{"fc.w":' + b"[" * 2000 + b"]" * 2000 + b"}")
def test_garbage_is_a_protocol_error(encoding: str, garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        _consume(encoding, memoryview(garbage))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder: Path = tmp_path_factory.mktemp("valid")
    values = ModelState({**TWO, **VALUES})
    return {
        name: b"".join(encode_model(name, values, TWO, folder=folder, keep=0.2).frames)
        for name in ENCODINGS
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(data=st.data())
def test_a_damaged_file_is_a_model_or_a_protocol_error(
    encoding: str, valid: dict[str, bytes], data: st.DataObject
) -> None:
    file = bytearray(valid[encoding])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(file)))
        match data.draw(st.sampled_from(["change", "cut", "insert", "remove"])):
            case "change" if at < len(file):
                file[at] = data.draw(st.integers(0, 255))
            case "cut":
                del file[at:]
            case "insert":
                file[at:at] = data.draw(st.binary(max_size=8))
            case "remove":
                del file[at : at + data.draw(st.integers(1, 8))]

    with suppress(ProtocolError):
        _consume(encoding, memoryview(file), TWO)
