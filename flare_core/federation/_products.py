"""The inner products of the steps of a round, in one pass over all updates."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from flare_core._model import Array, ModelState, TensorClass
from flare_core.federation._fold import PART_ELEMENTS, Each, Part

Centre: TypeAlias = Callable[[Part], Array]
"""Returns where the steps begin, for some elements: in float64 or complex128."""
_LEAST_COLUMNS = 1 << 10
"""Of fewer at a time, the calls would take longer than the sums."""


def products(
    updates: Sequence[ModelState],
    centre: Centre,
    batches: Iterable[Sequence[Part]],
    each: Each,
    *,
    pairs: bool,
) -> Array:
    """Return the inner product of the steps of each two updates, in float64.

    Steps are over all floating tensors.  The sums are made in the order of the parts
    and by nothing that a machine may order by itself, as a matrix product is: so they
    are the same bits for any number of threads.

    Args:
        updates: The local models.
        centre: Where the steps begin.
        batches: All elements of the model.
        each: Shares the batches among the cores.
        pairs: Whether of each two; else of each with itself, and 0 of the others.
    """

    def of_batch(batch: Sequence[Part]) -> Array:
        total = np.zeros((len(updates), len(updates)))
        for part in batch:
            if part.spec.kind is not TensorClass.COUNTER:
                values = [part.of(one) for one in updates]
                _add(total, values, centre(part), pairs=pairs)
        return total

    upper = np.zeros((len(updates), len(updates)))
    with np.errstate(over="ignore", invalid="ignore"):
        for total in each(of_batch, batches):
            upper += total
        return upper + np.triu(upper, 1).T


def _add(total: Array, values: Sequence[Array], centre: Array, *, pairs: bool) -> None:
    """Add the products of a part, of each update with itself and those after it.

    The more updates there are, the fewer elements at a time: the memory is the same.
    """
    num_columns = max(_LEAST_COLUMNS, PART_ELEMENTS // len(values))
    for start in range(0, len(centre), num_columns):
        block = slice(start, start + num_columns)
        steps = np.stack([one[block].astype(centre.dtype) for one in values])
        with np.errstate(over="ignore", invalid="ignore"):  # of this thread
            steps -= centre[block]
            reals = steps.view(np.float64)
            for row, step in enumerate(reals):
                others = slice(row, None if pairs else row + 1)
                total[row, others] += (reals[others] * step).sum(axis=1)
