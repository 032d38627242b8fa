"""The weighted mean of updates, one update at a time."""

from typing import final

import numpy as np

from flare_core._model import (
    DTYPES,
    Array,
    Layout,
    ModelState,
    TensorClass,
    TensorSpec,
    accumulator_dtype,
    rounded_once,
)


@final
class Fold:
    r"""Federated averaging of models, folded in the caller's order.

    For weights :math:`w_k` with :math:`n_k` examples, gives
    :math:`\sum_k n_k w_k / \sum_k n_k` (McMahan et al., AISTATS 2017, Algorithm 1,
    https://arxiv.org/abs/1602.05629).  Sums run in float64 with integer weights and
    are rounded once, so that the mean of float32 values is the correctly rounded one
    in practice; the mean of a single update is that update, bit for bit.  Counters
    take the maximum.

    Args:
        layout: Layout of the global model; every update must have it.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sums: dict[str, Array] = {}
        self._num_examples = 0
        self._num_updates = 0

    def add(self, weights: ModelState, num_examples: int) -> None:
        """Add one update.

        Args:
            weights: With the fold's layout; not kept.
            num_examples: Its weight, at least 1.
        """
        for spec in self._layout.tensors:
            self._add_tensor(spec, weights[spec.name], num_examples)
        self._num_examples += num_examples
        self._num_updates += 1

    def mean(self) -> ModelState:
        """Return the mean of what was added: layout and types as it came.

        Raises:
            ValueError: If nothing was added.
        """
        if not self._num_updates:
            msg = "the mean of no update is undefined"
            raise ValueError(msg)
        return ModelState(
            {spec.name: self._mean_tensor(spec) for spec in self._layout.tensors},
            classes=self._layout.classes,
        )

    def _add_tensor(self, spec: TensorSpec, array: Array, num_examples: int) -> None:
        if spec.kind is TensorClass.COUNTER:
            known = self._sums.get(spec.name)
            self._sums[spec.name] = (
                array.copy() if known is None else np.maximum(known, array)
            )
            return
        wide = array.astype(accumulator_dtype(array.dtype))
        if self._num_updates == 0:
            self._sums[spec.name] = wide  # its weight waits for a second update
            return
        total = self._sums[spec.name]
        if self._num_updates == 1:
            total *= self._num_examples
        wide *= num_examples
        total += wide

    def _mean_tensor(self, spec: TensorSpec) -> Array:
        total = self._sums[spec.name]
        if spec.kind is TensorClass.COUNTER:
            return total
        mean = total if self._num_updates == 1 else total / self._num_examples
        return rounded_once(np.asarray(mean), DTYPES[spec.dtype])
