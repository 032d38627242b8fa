from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn import arrays, from_bits, to_bits
from flare_core import DTYPES, ModelState, TensorClass
from flare_core._model import Array, bits_of


@given(st.dictionaries(st.text(max_size=5), arrays()))
def test_an_array_keeps_its_bits_type_and_shape(tensors: dict[str, Array]) -> None:
    state = ModelState(tensors)

    assert set(state) == set(tensors)
    for name, array in tensors.items():
        assert to_bits(state[name]) == to_bits(array)
        assert state[name].dtype == array.dtype
        assert state[name].shape == array.shape


@pytest.mark.parametrize("code", DTYPES)
def test_every_type_of_safetensors_has_its_code(code: str) -> None:
    state = ModelState({"w": np.zeros((2, 4), DTYPES[code])})

    (spec,) = state.layout.tensors
    assert (spec.dtype, spec.shape) == (code, (2, 4))
    assert spec.num_bytes == 8 * bits_of(code) // 8


def test_an_array_in_order_is_not_copied() -> None:
    array = np.arange(6.0).reshape(2, 3)

    state = ModelState({"w": array})

    assert np.shares_memory(state["w"], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["transposed", "strided", "fortran", "broadcast"],
)
def test_an_array_out_of_order_is_put_in_order(array: Array) -> None:
    state = ModelState({"w": array})

    assert state["w"].flags.c_contiguous
    np.testing.assert_array_equal(state["w"], array)


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">f2", ">c8", ">u2"])
def test_a_big_endian_array_becomes_little_endian(dtype: str) -> None:
    array = np.arange(3).astype(dtype)

    state = ModelState({"w": array})

    assert state["w"].dtype.byteorder in "=<"
    np.testing.assert_array_equal(state["w"], array)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, np.complex128),
        np.array([object()]),
        np.array(["a"]),
        np.array([b"a"]),
        np.zeros(2, np.longdouble),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, ml_dtypes.int4),
    ],
    ids=lambda value: str(value.dtype),
)
def test_names_the_tensor_whose_type_cannot_travel(value: Array) -> None:
    with pytest.raises(TypeError, match=r"tensor 'layer\.0\.w': .* possible are") as e:
        ModelState({"fine": np.zeros(2), "layer.0.w": value})

    assert str(value.dtype) in str(e.value)


def test_a_name_that_safetensors_keeps_for_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="__metadata__"):
        ModelState({"__metadata__": np.zeros(2)})


@pytest.mark.parametrize("value", [3.5, [1.0, 2.0], np.float32(1)])
def test_takes_what_numpy_makes_an_array_of(value: Any) -> None:
    assert ModelState({"w": value})["w"].tolist() == np.asarray(value).tolist()


@pytest.mark.parametrize("code", ["BOOL", "U8", "I8", "I64", "U64"])
def test_what_counts_is_a_counter_whatever_was_said(code: str) -> None:
    array = from_bits(code, (1,), bytes(DTYPES[code].itemsize))

    state = ModelState({"n": array}, classes={"n": TensorClass.PARAMETER})

    assert state.layout.classes == {"n": TensorClass.COUNTER}


def test_a_floating_tensor_is_a_parameter_unless_it_is_said_otherwise() -> None:
    tensors = {"w": np.zeros(1), "running_mean": np.zeros(1)}

    state = ModelState(tensors, classes={"running_mean": TensorClass.BUFFER})

    assert state.layout.classes == {
        "w": TensorClass.PARAMETER,
        "running_mean": TensorClass.BUFFER,
    }


def test_shows_its_size() -> None:
    state = ModelState({"w": np.zeros(1000, np.float32)})

    assert repr(state) == "<ModelState: 1 tensors, 4,000 bytes>"


def test_a_state_of_a_state_keeps_its_classes() -> None:
    buffer = {"mean": TensorClass.BUFFER}
    state = ModelState({"w": np.ones(2), "mean": np.ones(2)}, classes=buffer)

    assert ModelState(state).layout == state.layout
    assert ModelState(state) == state
    assert ModelState(dict(state)) != state


def test_states_are_equal_only_in_every_bit() -> None:
    nan = np.array([np.nan], np.float32)
    other = nan.view(np.uint32) + np.uint32(1)

    assert ModelState({"w": nan}) == ModelState({"w": nan.copy()})
    assert ModelState({"w": nan}) != ModelState({"w": other.view(np.float32)})
    assert ModelState({"w": nan}) != {"w": nan}
