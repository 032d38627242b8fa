"""What arrives of an encoded model: how large, how exact, and where."""

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from drawn import from_bits, states, to_bits
from flare_core import DTYPES, ModelState, TensorClass, TensorSpec
from flare_core._model import Array, all_finite, rounded_once
from flare_core.communication._encodings import (
    BLOCK,
    Encoded,
    decode_model,
    encode_model,
    encodes,
)
from flare_core.communication._encodings._room import Room
from flare_core.communication._encodings._sum import put_sum
from inspection import loaded_by

ENCODINGS = ("bf16", "int4", "int8", "topk", "xor")
LOSSY = ENCODINGS[:-1]
BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BF16]
NON_FINITE = [np.nan, np.inf, -np.inf]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoded")


def _file(encoded: Encoded) -> memoryview:
    return memoryview(b"".join(encoded.frames))


def _decoded(encoding: str, file: memoryview, base: ModelState) -> ModelState:
    """Put the pieces together, and check that each comes in its place and once."""
    parts: dict[TensorSpec, list[Array]] = {}
    for spec, start, values in decode_model(encoding, file, base):
        assert start == sum(len(part) for part in parts.setdefault(spec, []))
        assert values.ndim == 1
        assert len(values) <= BLOCK
        parts[spec].append(values)
    assert tuple(parts) == base.layout.tensors
    return ModelState(
        {
            spec.name: np.concatenate(part).reshape(spec.shape)
            for spec, part in parts.items()
        },
        classes=base.layout.classes,
    )


def _through(
    encoding: str, values: ModelState, base: ModelState, folder: Path, **options: Any
) -> tuple[ModelState, float]:
    encoded = encode_model(encoding, values, base, folder=folder, **options)
    return _decoded(encoding, _file(encoded), base), encoded.error


def _near(base: ModelState, *, relative: float = 1e-4) -> ModelState:
    """Return a model that local training could have made of the base."""
    rng = np.random.default_rng(1)
    return ModelState(
        {
            name: array
            if array.dtype.kind in "biu"
            else (
                array.astype(np.float64)
                * (1 + relative * rng.standard_normal(array.shape))
            ).astype(array.dtype)
            for name, array in base.items()
        },
        classes=base.layout.classes,
    )


def _mixed() -> ModelState:
    """Return a model with all that encodings tell apart, and more than one block."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {
        f"{dtype.name}.weight": rng.standard_normal((3, 50)).astype(dtype)
        for dtype in FLOATS
    }
    tensors["large"] = rng.standard_normal(2 * BLOCK + 4_097).astype(np.float32)
    tensors["running_mean"] = rng.standard_normal(100).astype(np.float32)
    tensors["num_batches"] = np.asarray(7)
    tensors["mask"] = rng.integers(0, 2, 100).astype(bool)
    tensors["scalar"] = np.asarray(0.5, np.float32)
    tensors["empty"] = np.zeros((0, 3), np.float32)
    tensors["packed"] = np.ones(BLOCK + 8, ml_dtypes.float6_e2m3fn)
    return ModelState(tensors, classes={"running_mean": TensorClass.BUFFER})


@pytest.mark.parametrize(
    ("encoding", "most"),
    [("bf16", 0.5001), ("int8", 0.2503), ("int4", 0.1406), ("topk", 0.0151)],
)
def test_a_model_is_as_small_as_promised(
    encoding: str, most: float, folder: Path
) -> None:
    rng = np.random.default_rng(0)
    base = ModelState({"w": rng.standard_normal((1_000, 1_003)).astype(np.float32)})

    encoded = encode_model(encoding, _near(base), base, folder=folder, keep=0.01)

    assert len(_file(encoded)) < most * base.layout.num_bytes


def test_a_small_change_is_sent_without_loss_in_half_the_bytes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    base = ModelState({"w": rng.standard_normal((1_000, 1_003)).astype(np.float32)})

    encoded = encode_model("xor", _near(base, relative=1e-4), base, folder=folder)

    assert len(_file(encoded)) < 0.478 * base.layout.num_bytes


@st.composite
def _deltas(draw: st.DrawFn) -> Array:
    """Arrays of any finite float32, of which few are alike, over several blocks."""
    numbers = st.floats(-(2.0**126), 2.0**126, width=32)
    some = draw(numpy_arrays(np.float32, st.integers(1, 50), elements=numbers))
    every = draw(st.integers(1, 100))
    many: Array = np.resize(some, draw(st.integers(64, 10_000)))
    many[::every] /= np.float32(draw(st.integers(1, 1_000)))
    return many


@pytest.mark.parametrize(
    ("encoding", "block", "steps"), [("int8", 4_096, 254), ("int4", 128, 14)]
)
@given(delta=_deltas())
def test_the_error_is_half_a_step_of_the_block(
    encoding: str, block: int, steps: int, delta: Array, folder: Path
) -> None:
    base = ModelState({"w": np.zeros_like(delta)})

    found, _ = _through(encoding, ModelState({"w": delta}), base, folder)

    error = np.abs(found["w"].astype(np.float64) - delta)
    for start in range(0, len(delta), block):
        part = slice(start, start + block)
        absmax = float(np.abs(delta[part]).max())
        rounding = 1e-4 * absmax / steps + 1e-43  # of float32, and of its subnormals
        assert error[part].max() <= absmax / steps + rounding


@given(delta=_deltas())
def test_bf16_keeps_eight_bits(delta: Array, folder: Path) -> None:
    base = ModelState({"w": np.zeros_like(delta)})

    found, _ = _through("bf16", ModelState({"w": delta}), base, folder)

    error = np.abs(found["w"].astype(np.float64) - delta)
    assert (error <= 2.0**-8 * np.abs(delta) + 2.0**-134).all()


@given(delta=_deltas(), keep=st.floats(0.001, 1))
def test_topk_sends_the_largest_and_of_equal_ones_the_first(
    delta: Array, keep: float, folder: Path
) -> None:
    base = ModelState({"w": np.zeros_like(delta)})

    found, _ = _through("topk", ModelState({"w": delta}), base, folder, keep=keep)

    order = np.argsort(-np.abs(delta), kind="stable")
    expected = np.zeros_like(delta)
    largest = order[: int(np.ceil(keep * len(delta)))]
    expected[largest] = delta[largest]
    np.testing.assert_array_equal(found["w"], expected)


@given(values=states(), data=st.data())
def test_xor_keeps_every_bit(
    values: ModelState, data: st.DataObject, folder: Path
) -> None:
    tensors = {
        spec.name: from_bits(
            spec.dtype, spec.shape, data.draw(st.binary(min_size=size, max_size=size))
        )
        for spec in values.layout.tensors
        for size in [values[spec.name].nbytes]
    }
    base = ModelState(tensors, classes=values.layout.classes)

    found, error = _through("xor", values, base, folder)

    assert found == values
    assert error == 0


@pytest.mark.parametrize("code", DTYPES)
def test_xor_keeps_every_bit_of_every_type(code: str, folder: Path) -> None:
    rng = np.random.default_rng(0)
    size = 2_000 * DTYPES[code].itemsize
    values, base = (
        ModelState({"w": from_bits(code, (2, 1_000), rng.bytes(size))})
        for _ in range(2)
    )

    found, _ = _through("xor", values, base, folder)

    assert to_bits(found["w"]) == to_bits(values["w"])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_file_is_one_of_safetensors(encoding: str, folder: Path) -> None:
    base = _mixed()
    values = _near(base)

    file = _file(encode_model(encoding, values, base, folder=folder))

    found: dict[str, Any] = dict(safetensors.deserialize(bytes(file)))  # type: ignore[no-untyped-call,unused-ignore] # has no types
    assert set(found) == set(base)
    for spec in base.layout.tensors:
        entry = found[spec.name]
        if encodes(encoding, spec):
            assert (entry["dtype"], entry["shape"]) == ("U8", [len(entry["data"])])
        else:
            assert (entry["dtype"], tuple(entry["shape"])) == (spec.dtype, spec.shape)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_tensor_that_is_not_encoded_arrives_as_it_is(
    encoding: str, folder: Path
) -> None:
    base = _mixed()
    values = _near(base)

    found, _ = _through(encoding, values, base, folder)

    assert found.layout == values.layout
    for spec in base.layout.tensors:
        if not encodes(encoding, spec):
            assert to_bits(found[spec.name]) == to_bits(values[spec.name])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_not_encoded_is_aligned_and_cannot_be_written_to(
    encoding: str, folder: Path
) -> None:
    base = _mixed()
    file = _file(encode_model(encoding, _near(base), base, folder=folder))

    for piece in decode_model(encoding, file, base):
        if piece.spec.num_elements and not encodes(encoding, piece.spec):
            assert piece.values.flags.aligned
            assert not piece.values.flags.writeable


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_error_is_the_one_that_is_measured(encoding: str, folder: Path) -> None:
    base = _mixed()
    values = _near(base)

    found, error = _through(encoding, values, base, folder, keep=0.1)

    lost, sent = (
        sum(
            float(np.square(values[spec.name].astype(float) - other[spec.name]).sum())
            for spec in base.layout.tensors
            if encodes(encoding, spec) and spec.kind is not TensorClass.COUNTER
        )
        for other in (found, base)
    )
    assert error == pytest.approx((lost / sent) ** 0.5, rel=1e-9)
    assert (error > 0) == (encoding != "xor")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_is_lost_of_nothing(encoding: str, folder: Path) -> None:
    base = _mixed()

    found, error = _through(encoding, base, base, folder)

    assert found == base
    assert error == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pieces_may_be_written_over_the_base(encoding: str, folder: Path) -> None:
    base = _mixed()
    file = _file(encode_model(encoding, _near(base), base, folder=folder, keep=0.1))
    expected = _decoded(encoding, file, base)
    own = ModelState(
        {name: array.copy() for name, array in base.items()},
        classes=base.layout.classes,
    )

    for spec, start, values in decode_model(encoding, file, own):
        own[spec.name].reshape(-1)[start : start + len(values)] = values

    assert own == expected


@pytest.mark.parametrize("bad", NON_FINITE)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_not_finite_arrives_so_in_the_same_tensor(
    encoding: str, dtype: np.dtype[Any], bad: float, folder: Path
) -> None:
    base = ModelState({name: np.ones(500, dtype) for name in "abc"})
    values = {name: np.linspace(0, 2, 500).astype(dtype) for name in "abc"}
    values["b"][300] = bad

    found, error = _through(encoding, ModelState(values), base, folder, keep=0.01)

    assert [name for name in "abc" if not all_finite(found[name])] == ["b"]
    assert (
        encoding == "xor"
        or not encodes(encoding, base.layout.tensors[1])
        or (np.isnan(error))
    )


def test_the_bytes_are_the_same_on_every_machine(folder: Path) -> None:
    exact = np.arange(100_000) * 7_919 % 65_537 - 32_768
    old = (exact / 2.0**20).astype(np.float32)
    new = (exact / 2.0**20 + exact[::-1] / 2.0**28).astype(np.float32)
    old[[7, 90_000]] = new[[7, 90_001]] = np.inf  # at 7 the difference is a NaN
    digests = {
        encoding: hashlib.sha256(
            _file(
                encode_model(
                    encoding,
                    ModelState({"w": new}),
                    ModelState({"w": old}),
                    folder=folder,
                    keep=0.01,
                )
            )
        ).hexdigest()[:16]
        for encoding in LOSSY
    }

    assert digests == {
        "bf16": "3a0f2cd98be35b42",
        "int4": "cdb25721032cacb0",
        "int8": "ca56b512cb377290",
        "topk": "ea69233786b9072e",
    }


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [
        (encoding, dtype)
        for encoding in LOSSY
        for dtype in FLOATS
        if encodes(encoding, ModelState({"w": np.zeros(100, dtype)}).layout.tensors[0])
    ],
    ids=str,
)
def test_all_nans_have_the_same_bits(
    encoding: str, dtype: np.dtype[Any], folder: Path
) -> None:
    base = ModelState({"w": np.full(100, np.inf, dtype)})
    values = ModelState({"w": np.full(100, np.inf, dtype)})

    found, _ = _through(encoding, values, base, folder)

    assert to_bits(found["w"]) == to_bits(np.full(100, np.nan, dtype))


def test_topk_leaves_what_it_does_not_send_as_it_is(folder: Path) -> None:
    base = ModelState({"w": np.full(100, -0.0, np.float32)})
    values = base["w"].copy()
    values[50] = 1

    found, _ = _through("topk", ModelState({"w": values}), base, folder, keep=0.5)

    assert to_bits(found["w"]) == to_bits(values)


def test_topk_sends_no_zeros(folder: Path) -> None:
    base = ModelState({"w": np.ones(10_000, np.float32)})

    encoded = encode_model("topk", base, base, folder=folder, keep=0.5)

    assert len(_file(encoded)) < 200


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_base_and_delta_are_rounded_once(dtype: np.dtype[Any]) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    base = bits.view(dtype)
    with np.errstate(all="ignore"):
        half = (bits ^ 1).view(dtype).astype(float) / 2 - base.astype(float) / 2
        for factor in (1, 1 - 2.0**-22, 1 + 2.0**-22, -1 - 2.0**-22, 3 + 2.0**-20):
            delta = (half * factor).astype(np.float32)
            values = np.empty_like(base)

            put_sum(base, delta, values, Room())

            exact = base.astype(float) + delta
            expected = rounded_once(exact, dtype)
            expected[np.isnan(exact)] = np.nan
            assert to_bits(values) == to_bits(expected)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_memory_does_not_grow_with_the_model(encoding: str, folder: Path) -> None:
    base = ModelState({"w": np.linspace(-1, 1, 20 * BLOCK, dtype=np.float32)})
    values = ModelState({"w": base["w"] * np.float32(1.001)})

    tracemalloc.start()
    encoded = encode_model(encoding, values, base, folder=folder, keep=0.01)
    mapped = encoded.frames[1]
    file = _file(encoded)
    for _ in decode_model(encoding, file, base):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert isinstance(mapped, memoryview)
    assert peak - len(file) < base.layout.num_bytes / 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_stays_in_the_folder(encoding: str, tmp_path: Path) -> None:
    base = _mixed()

    encoded = encode_model(encoding, _near(base), base, folder=tmp_path)

    assert not list(tmp_path.iterdir())
    assert encoded.frames


BUFFER, COUNTER = TensorClass.BUFFER, TensorClass.COUNTER


@pytest.mark.parametrize(
    ("encoding", "dtype", "num_elements", "kind", "expected"),
    [
        ("bf16", "F64", 64, None, True),
        ("bf16", "F32", 64, None, True),
        ("bf16", "F16", 64, None, False),
        ("bf16", "BF16", 64, None, False),
        *[(one, "BF16", 64, None, True) for one in ("int4", "int8", "topk")],
        *[(one, "F8_E4M3", 64, None, False) for one in LOSSY],
        *[(one, "C64", 64, None, False) for one in LOSSY],
        *[(one, "F32", 63, None, False) for one in LOSSY],
        *[(one, "F32", 64, BUFFER, False) for one in LOSSY],
        ("xor", "F32", 1, BUFFER, True),
        ("xor", "I64", 0, COUNTER, True),
        ("xor", "C64", 64, None, True),
        ("xor", "F4", 64, None, False),
    ],
)
def test_both_sides_know_what_is_encoded(
    encoding: str,
    dtype: str,
    num_elements: int,
    kind: TensorClass | None,
    *,
    expected: bool,
) -> None:
    spec = TensorSpec("w", dtype, (num_elements,), kind or TensorClass.PARAMETER)

    assert encodes(encoding, spec) is expected


EMPTY = ModelState({})


@pytest.mark.parametrize(
    "use",
    [
        lambda name: encode_model(name, EMPTY, EMPTY, folder=Path()),
        lambda name: decode_model(name, memoryview(b""), EMPTY),
        lambda name: encodes(name, TensorSpec("w", "F32", (64,))),
    ],
    ids=["encode", "decode", "encodes"],
)
def test_an_unknown_encoding_is_named(use: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="'int9'; possible are bf16, int4, int8, topk"):
        use("int9")


@pytest.mark.parametrize("keep", [0, -1, 1.1, np.nan])
def test_keep_is_a_fraction(keep: float, folder: Path) -> None:
    model = ModelState({"w": np.zeros(3)})

    with pytest.raises(ValueError, match="keep: expected a fraction"):
        encode_model("topk", model, model, folder=folder, keep=keep)


def test_values_and_base_have_one_layout(folder: Path) -> None:
    one, other = ModelState({"w": np.zeros(3)}), ModelState({"w": np.zeros(4)})

    with pytest.raises(ValueError, match="layout of the base"):
        encode_model("int8", one, other, folder=folder)


def test_zstd_is_loaded_by_the_encoding_that_needs_it() -> None:
    loaded = loaded_by("import flare_core.communication._encodings")

    assert "flare_core" in loaded
    assert "zstandard" not in loaded
