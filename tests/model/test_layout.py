import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn import states
from flare_core import Layout, ModelState, TensorClass, TensorSpec


@given(states(), st.data())
def test_the_hash_does_not_depend_on_the_order_of_insertion(
    state: ModelState, data: st.DataObject
) -> None:
    names = data.draw(st.permutations(list(state)))

    other = ModelState(
        {name: state[name] for name in names}, classes=state.layout.classes
    )

    assert other.layout.hash == state.layout.hash
    assert list(other) == list(state)


@pytest.mark.parametrize(
    "other",
    [
        ModelState({"v": np.zeros((2, 3), np.float32)}),
        ModelState({"w": np.zeros((2, 3), np.float16)}),
        ModelState({"w": np.zeros((3, 2), np.float32)}),
        ModelState({"w": np.zeros(6, np.float32)}),
        ModelState(
            {"w": np.zeros((2, 3), np.float32)}, classes={"w": TensorClass.BUFFER}
        ),
        ModelState({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3)}),
        ModelState({}),
    ],
    ids=["name", "dtype", "shape", "axes", "class", "one more", "one less"],
)
def test_the_hash_changes_with_whatever_differs(other: ModelState) -> None:
    state = ModelState({"w": np.zeros((2, 3), np.float32)})

    assert other.layout.hash != state.layout.hash


def test_the_hash_does_not_change_with_the_values() -> None:
    zeros, ones = ModelState({"w": np.zeros(2)}), ModelState({"w": np.ones(2)})

    assert zeros.layout.hash == ones.layout.hash


def test_large_elements_travel_first_so_that_each_tensor_is_aligned() -> None:
    state = ModelState(
        {
            "a": np.zeros(3, np.uint8),
            "b": np.zeros(3, np.float64),
            "c": np.zeros(3, np.float16),
            "d": np.zeros(3, np.float32),
            "e": np.zeros((), np.float64),
        }
    )

    assert list(state) == ["b", "e", "d", "c", "a"]
    assert state.layout.num_bytes == 3 + 24 + 6 + 12 + 8


@given(states())
def test_a_layout_survives_the_wire(state: ModelState) -> None:
    encoded = msgspec.msgpack.encode(state.layout)

    assert msgspec.msgpack.decode(encoded, type=Layout) == state.layout


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor 'w': no such type as 'F31'"):
        TensorSpec("w", "F31", (1,))


def test_a_negative_extent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor 'w': .*\(2, -1\)"):
        TensorSpec("w", "F32", (2, -1))


@pytest.mark.parametrize(
    "tensors",
    [
        (TensorSpec("b", "F32", ()), TensorSpec("a", "F32", ())),
        (TensorSpec("a", "F32", ()), TensorSpec("b", "F64", ())),
        (TensorSpec("a", "F32", ()), TensorSpec("a", "F32", ())),
        (TensorSpec("a", "F64", ()), TensorSpec("a", "F32", ())),
    ],
    ids=["names", "types", "twice", "twice by two types"],
)
def test_a_layout_out_of_order_is_refused(tensors: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(ValueError, match=r"may not follow|once"):
        Layout(tensors)


def test_what_stays_at_a_site_may_be_of_any_type_but_never_travels() -> None:
    stays = TensorSpec("mask", "sparse_coo", (3,), TensorClass.LOCAL)

    assert stays.num_bytes == 0
    with pytest.raises(ValueError, match="'mask' never leaves its site"):
        Layout((stays,))
