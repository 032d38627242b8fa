"""The weighted mean of updates, one update and one part at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, final

import numpy as np

from flare_core._model import (
    DTYPES,
    Array,
    Layout,
    ModelState,
    TensorClass,
    TensorSpec,
    accumulator_dtype,
)

PART_ELEMENTS = 1 << 17
"""Its sums fit the cache of a core."""
_MOST_WAITING = 2
"""Folded with the mean itself; more would make its pass longer than it need be."""
Values: TypeAlias = Callable[["Part"], Array]
"""Returns some elements of an update, or of a sum of some."""
_T = TypeVar("_T")
_R = TypeVar("_R")


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Some elements of one tensor.

    Attributes:
        spec: The tensor.
        start: Its first element here, in C order.
        stop: The one after the last.
    """

    spec: TensorSpec
    start: int
    stop: int

    def of(self, weights: ModelState) -> Array:
        """Return these elements of a model, flat: a view."""
        flat: Array = weights[self.spec.name].reshape(-1)
        return flat[self.start : self.stop]


@final
@dataclass(frozen=True, slots=True)
class Weight:
    """How much updates weigh, by the class of the tensor.

    Attributes:
        parameters: Parameters.
        buffers: Buffers.
        controls: Controls.
    """

    parameters: float = 0
    buffers: float = 0
    controls: float = 0

    def of(self, spec: TensorSpec) -> float:
        """Return how much they weigh in a tensor."""
        match spec.kind:
            case TensorClass.PARAMETER:
                return self.parameters
            case TensorClass.CONTROL:
                return self.controls
            case _:
                return self.buffers

    def plus(self, other: "Weight") -> "Weight":
        """Return how much both weigh together."""
        return Weight(
            self.parameters + other.parameters,
            self.buffers + other.buffers,
            self.controls + other.controls,
        )


@final
@dataclass(frozen=True, slots=True)
class Tally:
    """What is in a sum.

    Attributes:
        updates: How many; the sum of a single one is that update, not multiplied.
        total: How much they weigh together.
    """

    updates: int = 0
    total: Weight = Weight()

    def plus(self, other: "Tally") -> "Tally":
        """Return what is in the sum of both."""
        return Tally(self.updates + other.updates, self.total.plus(other.total))


class Each(Protocol):
    """Applies a function to all items, in any order; as `map`, or on more cores."""

    def __call__(
        self, function: Callable[[_T], _R], items: Iterable[_T], /
    ) -> Iterator[_R]:
        """Yield the results in the order of the items."""
        ...


def _fresh(num_bytes: int) -> memoryview:
    return memoryview(bytearray(num_bytes))


@final
class Fold:
    r"""Federated averaging of models, folded in the caller's order.

    For weights :math:`w_k` with :math:`n_k` examples, gives
    :math:`\sum_k n_k w_k / \sum_k n_k` (McMahan et al., AISTATS 2017, Algorithm 1,
    https://arxiv.org/abs/1602.05629).  Sums run in float64 with integer weights, to be
    rounded once, so that the mean of float32 values is the correctly rounded one in
    practice; the mean of a single update is that update, bit for bit.  Counters take
    the maximum.  The parts are independent: how many are worked on at a time changes
    no bit.

    The newest updates wait: they are added while the mean is taken, in one pass that
    needs no memory for sums.

    Parameters may have weights :math:`w_k` of their own instead; buffers have
    :math:`n_k` in any case, and controls are averaged each alike.

    What was summed elsewhere is added as it is: a sum of sums has the same bits,
    wherever the sums were made.

    Args:
        layout: Layout of the global model; every update must have it.
        memory: Returns writable memory of so many bytes, whatever is in it.

    Attributes:
        batches: The elements of the model, in the order in which they travel, some at
            a time.
        tally: What was added.
    """

    def __init__(
        self, layout: Layout, memory: Callable[[int], memoryview] = _fresh
    ) -> None:
        self.batches = tuple(batches(layout))
        self.tally = Tally()
        self._layout = layout
        self._memory = memory
        self._sums: dict[str, Array] = {}
        self._folded = Tally()
        self._waiting: list[tuple[Values, Tally]] = []

    def add(
        self,
        weights: ModelState,
        num_examples: int,
        each: Each = map,
        *,
        weight: float | None = None,
    ) -> None:
        """Add one update.

        Args:
            weights: With the fold's layout; kept, and not to be changed.
            num_examples: Its weight, at least 1.
            each: Applies a function to all batches.
            weight: That of its parameters, if it is another one; not below 0.
        """
        of_parameters = num_examples if weight is None else weight
        tally = Tally(1, Weight(of_parameters, num_examples, 1))
        self.add_sum(lambda part: part.of(weights), tally, each)

    def add_sum(self, values: Values, tally: Tally, each: Each = map) -> None:
        """Add what another fold has summed.

        Args:
            values: Its `sum`; called later, from any thread, and more than once.
            tally: Its tally.
            each: Applies a function to all batches.
        """
        self._waiting.append((values, tally))
        self.tally = self.tally.plus(tally)
        if len(self._waiting) > _MOST_WAITING:
            self._fold(*self._waiting.pop(0), each)

    def sum(self, part: Part) -> Array:
        """Return the sum of a part; that of a single update is its values.

        In float64 or complex128, or a counter's type.

        Raises:
            ValueError: If nothing was added.
        """
        if not self.tally.updates:
            msg = "the mean of no update is undefined"
            raise ValueError(msg)
        total: Array = np.empty(part.stop - part.start, sum_dtype(part.spec))
        if self._folded.updates:
            total[...] = self._sums[part.spec.name][part.start : part.stop]
        count = self._folded
        for values, tally in self._waiting:
            _add(part, total, values(part), count, tally)
            count = count.plus(tally)
        return total

    def mean(self, part: Part) -> Array:
        """Return the mean of a part, as `sum` does."""
        return _over(part, self.sum(part), self.tally)

    def _fold(self, values: Values, tally: Tally, each: Each) -> None:
        if not self._sums:
            memory = self._memory(_sums_bytes(self._layout))
            self._sums = dict(_sums(self._layout, memory))

        def add_batch(batch: Sequence[Part]) -> None:
            for part in batch:
                total = self._sums[part.spec.name][part.start : part.stop]
                _add(part, total, values(part), self._folded, tally)

        for _ in each(add_batch, self.batches):
            pass
        self._folded = self._folded.plus(tally)


def weighted(part: Part, values: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted mean of some elements, as a `Fold` of them has it.

    Args:
        part: Which elements.
        values: Those of each update; at least one.
        weights: That of each.
    """
    total: Array = np.empty(part.stop - part.start, sum_dtype(part.spec))
    count = Tally()
    for one, weight in zip(values, weights, strict=True):
        tally = Tally(1, Weight(weight, weight, weight))
        _add(part, total, one, count, tally)
        count = count.plus(tally)
    return _over(part, total, count)


def _over(part: Part, total: Array, count: Tally) -> Array:
    """Make a sum of some elements their mean."""
    if part.spec.kind is not TensorClass.COUNTER and count.updates > 1:
        total /= count.total.of(part.spec)
    return total


def _add(part: Part, total: Array, values: Array, count: Tally, more: Tally) -> None:
    """Add one more update, or the sum of some, to a sum of some elements."""
    if count.updates == 0:
        total[...] = values  # the weight of a single one waits for a second
    elif part.spec.kind is TensorClass.COUNTER:
        np.maximum(total, values, out=total)
    else:
        if count.updates == 1:
            total *= count.total.of(part.spec)
        if more.updates > 1:
            total += values
            return
        wide = values.astype(total.dtype)
        wide *= more.total.of(part.spec)
        total += wide


def _sums_bytes(layout: Layout) -> int:
    """Return the memory that the sums of a model of this layout take."""
    return sum(spec.num_elements * sum_dtype(spec).itemsize for spec in layout.tensors)


def _sums(layout: Layout, memory: memoryview) -> Iterator[tuple[str, Array]]:
    """Yield the sums of each tensor, larger types first as the layout has them."""
    offset = 0
    for spec in sorted(layout.tensors, key=lambda spec: -sum_dtype(spec).itemsize):
        dtype = sum_dtype(spec)
        end = offset + spec.num_elements * dtype.itemsize
        yield spec.name, np.frombuffer(memory[offset:end], dtype)
        offset = end


def sum_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Return the type in which the values of a tensor are summed."""
    dtype = DTYPES[spec.dtype]
    return dtype if spec.kind is TensorClass.COUNTER else accumulator_dtype(dtype)


def batches(layout: Layout) -> Iterator[tuple[Part, ...]]:
    """Yield the parts, small ones together: none is worth a thread of its own."""
    batch: list[Part] = []
    size = 0
    for part in _parts(layout):
        if batch and size + part.stop - part.start > PART_ELEMENTS:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(part)
        size += part.stop - part.start
    if batch:
        yield tuple(batch)


def _parts(layout: Layout) -> Iterator[Part]:
    for spec in layout.tensors:
        for start in range(0, spec.num_elements, PART_ELEMENTS):
            yield Part(spec, start, min(start + PART_ELEMENTS, spec.num_elements))
