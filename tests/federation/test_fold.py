import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TypeVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from averaging import mean_of
from drawn import from_bits, states, to_bits
from flare_core import DTYPES, ModelState, TensorClass
from flare_core._model import Array, all_finite, bits_of, rounded_once
from flare_core.federation import Fold
from flare_core.federation._fold import PART_ELEMENTS

_T = TypeVar("_T")
_R = TypeVar("_R")
_NUM_EXAMPLES = st.integers(1, 10**6)
_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _mean(*updates: tuple[ModelState, int]) -> ModelState:
    fold = Fold(updates[0][0].layout)
    for weights, num_examples in updates:
        fold.add(weights, num_examples)
    return mean_of(fold, updates[0][0].layout)


def _mean_of(values: list[float], counts: list[int], code: str) -> Array:
    states = [ModelState({"w": np.asarray([v], DTYPES[code])}) for v in values]
    return _mean(*zip(states, counts, strict=True))["w"]


@given(st.lists(st.tuples(_FLOAT32, _NUM_EXAMPLES), min_size=1, max_size=8))
def test_the_mean_of_float32_is_the_exact_one_rounded_to_the_last_bit(
    pairs: list[tuple[float, int]],
) -> None:
    values, counts = [v for v, _ in pairs], [n for _, n in pairs]
    exact = sum((Fraction(v) * n for v, n in pairs), Fraction()) / sum(counts)
    expected = float(np.float32(float(exact)))
    unsure = Fraction(max(map(abs, values))) / 2**48  # of float64 sums, and no more

    got = float(_mean_of(values, counts, "F32")[0])

    assert got == expected or _beside_a_tie(exact, unsure)


def _beside_a_tie(exact: Fraction, unsure: Fraction) -> bool:
    return bool(np.float32(float(exact - unsure)) != np.float32(float(exact + unsure)))


@pytest.mark.parametrize("code", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_the_mean_of_low_precision_is_the_exact_one_rounded_once(code: str) -> None:
    rng = np.random.default_rng(7)
    columns = rng.normal(size=(5, 3000)).astype(DTYPES[code])
    counts = [3, 1, 4, 1, 5]
    wide = columns.astype(np.float64)
    exact = [
        math.fsum(n * x for n, x in zip(counts, column, strict=True)) / sum(counts)
        for column in wide.T.tolist()
    ]
    expected = rounded_once(np.asarray(exact), DTYPES[code])

    updates = [
        (ModelState({"w": row}), n) for row, n in zip(columns, counts, strict=True)
    ]
    mean = _mean(*updates)["w"]

    assert to_bits(mean) == to_bits(expected)


def test_rounding_happens_once() -> None:
    ones = [
        ModelState({"w": np.asarray([x], ml_dtypes.bfloat16)}) for x in (1, 1 + 2**-7)
    ]
    # The mean is just above halfway between two bfloat16 values, and closer to
    # halfway than float32 can tell.
    count = 2**27

    mean = _mean((ones[0], count - 1), (ones[1], count + 1))["w"]

    assert float(mean[0]) == 1 + 2**-7


@pytest.mark.parametrize("code", DTYPES)
@given(data=st.data())
def test_a_single_update_comes_back_bit_for_bit(code: str, data: st.DataObject) -> None:
    size = 8 * DTYPES[code].itemsize
    array = from_bits(code, (2, 4), data.draw(st.binary(min_size=size, max_size=size)))
    assume(all_finite(array))

    mean = _mean((ModelState({"w": array}), data.draw(_NUM_EXAMPLES)))

    assert to_bits(mean["w"]) == to_bits(array)
    assert mean["w"].dtype == array.dtype


@given(
    numpy_arrays(np.float32, 5, elements=_FLOAT32),
    st.lists(_NUM_EXAMPLES, min_size=2, max_size=6),
)
def test_identical_updates_are_a_fixed_point(array: Array, counts: list[int]) -> None:
    state = ModelState({"w": array})

    mean = _mean(*((state, n) for n in counts))

    np.testing.assert_array_equal(mean["w"], array)


@given(st.lists(st.tuples(_FLOAT32, _NUM_EXAMPLES), min_size=1, max_size=8))
def test_the_mean_lies_between_the_least_and_the_greatest(
    pairs: list[tuple[float, int]],
) -> None:
    values = [value for value, _ in pairs]

    mean = float(_mean_of(values, [n for _, n in pairs], "F32")[0])

    assert min(values) <= mean <= max(values)


def test_examples_are_the_weights() -> None:
    mean = _mean_of([0.0, 4.0], [3, 1], "F32")

    assert mean.tolist() == [1.0]


@pytest.mark.parametrize(
    ("code", "seen", "expected"),
    [
        ("I64", [7, 10], 10),
        ("I64", [-7, -10], -7),
        ("I64", [2**62 + 1, 2**62], 2**62 + 1),  # float64 has no such number
        ("U64", [2**64 - 1, 3], 2**64 - 1),
        ("I8", [-128, 127], 127),
        ("BOOL", [False, True], True),
        ("BOOL", [False, False], False),
    ],
)
def test_counters_take_the_maximum_and_keep_their_type(
    code: str, seen: list[int], expected: int
) -> None:
    a, b = (
        ModelState({"num_batches_tracked": np.asarray(n, DTYPES[code])}) for n in seen
    )

    mean = _mean((a, 1), (b, 1))["num_batches_tracked"]

    assert mean.dtype == DTYPES[code]
    assert mean.shape == ()
    assert int(mean) == expected


def test_the_site_s_own_counter_is_left_alone() -> None:
    counter = np.asarray([7])

    fold = Fold(ModelState({"n": counter}).layout)
    fold.add(ModelState({"n": counter}), 1)
    alone = fold.mean(fold.batches[0][0])
    fold.add(ModelState({"n": [10]}), 1)

    assert counter.tolist() == [7]
    assert not np.shares_memory(alone, counter)


def test_floating_buffers_are_averaged_and_stay_buffers() -> None:
    kinds = {"running_mean": TensorClass.BUFFER}
    a = ModelState({"running_mean": np.asarray([0, 2], np.float32)}, classes=kinds)
    b = ModelState({"running_mean": np.asarray([4, 2], np.float32)}, classes=kinds)

    mean = _mean((a, 1), (b, 3))

    assert mean["running_mean"].tolist() == [3.0, 2.0]
    assert mean.layout == a.layout


def test_controls_are_averaged_each_alike_and_stay_controls() -> None:
    kinds = {"control": TensorClass.CONTROL}
    a = ModelState({"control": np.asarray([0, 2], np.float32)}, classes=kinds)
    b = ModelState({"control": np.asarray([4, 2], np.float32)}, classes=kinds)
    c = ModelState({"control": np.asarray([2, 5], np.float32)}, classes=kinds)

    mean = _mean((a, 3), (b, 1), (c, 9))

    assert mean["control"].tolist() == [2, 3]
    assert mean.layout == a.layout


def test_fifty_float16_updates_are_within_half_a_unit_in_the_last_place() -> None:
    rng = np.random.default_rng(1)
    updates = rng.uniform(0.5, 1, size=(50, 1000)).astype(np.float16)
    exact = updates.astype(np.float64).mean(axis=0)

    mean = _mean(*((ModelState({"w": row}), 10) for row in updates))["w"]

    assert mean.dtype == np.float16
    error = np.abs(mean.astype(np.float64) - exact)
    assert error.max() <= 2**-12  # 2.4e-4: half a unit of numbers below 1


def test_large_float16_updates_do_not_overflow() -> None:
    largest = ModelState({"w": np.full(3, 65504, np.float16)})

    mean = _mean(*((largest, 10**6) for _ in range(50)))

    assert mean["w"].tolist() == [65504] * 3


def test_complex_tensors_are_averaged_in_both_parts() -> None:
    a, b = (ModelState({"w": np.asarray([z], np.complex64)}) for z in (1 + 2j, 3 - 2j))

    assert _mean((a, 1), (b, 1))["w"].tolist() == [2 + 0j]


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (2, 4)])
@pytest.mark.parametrize("code", DTYPES)
def test_the_layout_stays(code: str, shape: tuple[int, ...]) -> None:
    if bits_of(code) % 8 and shape in ((), (1,)):
        shape = (4,)
    state = ModelState({"w": np.ones(shape).astype(DTYPES[code])})

    mean = _mean((state, 1), (state, 2), (state, 3))

    assert mean.layout == state.layout
    assert to_bits(mean["w"]) == to_bits(state["w"])


def test_the_updates_are_not_written_to() -> None:
    rows = np.asarray([[1.0, 2.0], [3.0, 5.0]])
    states = [ModelState({"w": row}) for row in rows]

    _mean((states[0], 2), (states[1], 3), (states[0], 4))

    assert rows.tolist() == [[1.0, 2.0], [3.0, 5.0]]


def test_the_mean_of_nothing_is_an_error() -> None:
    fold = Fold(ModelState({"w": [1.0]}).layout)

    with pytest.raises(ValueError, match="no update"):
        fold.mean(fold.batches[0][0])


@given(states())
def test_the_parts_are_all_elements_once_in_the_order_of_the_layout(
    state: ModelState,
) -> None:
    parts = [part for batch in Fold(state.layout).batches for part in batch]

    for spec in state.layout.tensors:
        pieces = [part.of(state) for part in parts if part.spec == spec]
        assert b"".join(map(to_bits, pieces)) == to_bits(state[spec.name])
    order = [spec.name for spec in state.layout.tensors]
    places = [(order.index(part.spec.name), part.start) for part in parts]
    assert places == sorted(places)
    assert all(part.start < part.stop for part in parts)


_LARGE: dict[str, Array] = {
    "odd": np.arange(2 * PART_ELEMENTS + 1, dtype=np.float32),
    "even": (np.arange(2 * PART_ELEMENTS) % 7).astype(np.float16),
    "packed": np.ones(PART_ELEMENTS + 8, ml_dtypes.float4_e2m1fn),
    "count": np.arange(PART_ELEMENTS - 1),
    **{f"small.{i}": np.full(3, i, np.float32) for i in range(9)},
}


def test_no_batch_is_larger_than_a_part_and_small_tensors_share_one() -> None:
    batches = Fold(ModelState(_LARGE).layout).batches

    sizes = [sum(part.stop - part.start for part in batch) for batch in batches]
    small = {
        i
        for i, batch in enumerate(batches)
        for part in batch
        if part.spec.name.startswith("small")
    }
    assert max(sizes) == PART_ELEMENTS
    assert len(small) == 1


def _backwards(function: Callable[[_T], _R], items: Iterable[_T], /) -> Iterator[_R]:
    return iter([function(item) for item in reversed(list(items))])


def test_the_order_in_which_parts_are_worked_on_changes_no_bit() -> None:
    updates = [
        ModelState({name: (w * i).astype(w.dtype) for name, w in _LARGE.items()})
        for i in (1, 2, 3, 2, 2)
    ]
    layout = updates[0].layout
    one_by_one, backwards, threads = (Fold(layout) for _ in range(3))

    with ThreadPoolExecutor(4) as pool:
        for update in updates:
            one_by_one.add(update, 3)
            backwards.add(update, 3, _backwards)
            threads.add(update, 3, pool.map)

    expected = mean_of(one_by_one, layout)
    assert mean_of(backwards, layout) == expected
    assert mean_of(threads, layout) == expected
    for name, w in _LARGE.items():
        twice = 3 if name == "count" else 2  # the maximum, not the mean
        assert to_bits(expected[name]) == to_bits((w * twice).astype(w.dtype))


@given(states(), st.integers(1, 5), st.binary(min_size=1, max_size=1))
def test_sums_may_lie_in_memory_that_was_used_before(
    state: ModelState, num_updates: int, left_over: bytes
) -> None:
    def used(num_bytes: int) -> memoryview:
        return memoryview(bytearray(left_over * num_bytes))

    folds = [Fold(state.layout, used), Fold(state.layout)]

    with np.errstate(invalid="ignore", over="ignore"):
        for fold in folds:
            for _ in range(num_updates):
                fold.add(state, 2)

        assert mean_of(folds[0], state.layout) == mean_of(folds[1], state.layout)
