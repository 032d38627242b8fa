"""Aggregations that look at the order of the values of each element."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias, final

import msgspec
import numpy as np

from flare_core._model import DTYPES, Array, accumulator_dtype
from flare_core.federation._aggregation import Aggregation
from flare_core.federation._fold import PART_ELEMENTS, Part

Hostile: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_LEAST_ROWS = 1 << 10
"""Of fewer at a time, the calls would take longer than the sorting."""


@final
class Median(Aggregation, frozen=True):
    """The median of each element: it stays where more than half of the sites are.

    Each element is between the least and the greatest value of the honest sites, as
    long as these are more than half (Yin et al., ICML 2018, Algorithm 1, Option I,
    https://arxiv.org/abs/1803.01498).  Of an even number of values it is the mean of
    the two in the middle.  Each site counts the same, however many examples it has
    seen.
    """

    @property
    def least(self) -> int:
        """Of three, one may be hostile; of fewer, none."""
        return 3

    def combine(
        self, part: Part, values: Sequence[Array], weights: Sequence[float]
    ) -> Array:
        """Return the value in the middle."""
        del weights
        low, high = (len(values) - 1) // 2, len(values) // 2

        def middle(rows: Array) -> Array:
            return (rows[:, low] + rows[:, high]) / 2

        return by_element(part, values, middle)


@final
class TrimmedMean(Aggregation, frozen=True):
    """The mean of each element, without the least and the greatest values.

    Each element is between the least and the greatest value of the honest sites, as
    long as no more are hostile than the settings say (Yin et al., ICML 2018, Algorithm
    1, Option II, https://arxiv.org/abs/1803.01498).  Each site counts the same, however
    many examples it has seen.

    Attributes:
        hostile: Most sites that may send anything at all: so many values are left out
            at both ends; β m in the paper.  It takes one site more than twice as many.
    """

    hostile: Hostile = 1

    @property
    def least(self) -> int:
        """One value has to be left."""
        return 2 * self.hostile + 1

    def combine(
        self, part: Part, values: Sequence[Array], weights: Sequence[float]
    ) -> Array:
        """Return the mean of the values that are left."""
        del weights
        left = slice(self.hostile, len(values) - self.hostile)

        def trimmed(rows: Array) -> Array:
            mean: Array = rows[:, left].sum(axis=1) / (left.stop - left.start)
            return mean

        return by_element(part, values, trimmed)


def by_element(
    part: Part, values: Sequence[Array], of: Callable[[Array], Array]
) -> Array:
    """Return what a function makes of the values of each element, in order, as a row.

    The more updates there are, the fewer rows at a time: the memory is the same.

    Args:
        part: Which elements.
        values: Those of each update.
        of: Gets a sorted row of float64 for each; of complex numbers two, as both parts
            are looked at, each by itself.
    """
    wide = accumulator_dtype(DTYPES[part.spec.dtype])
    made: Array = np.empty(part.stop - part.start, wide)
    num_rows = max(_LEAST_ROWS, PART_ELEMENTS // len(values))
    for start in range(0, len(made), num_rows):
        block = slice(start, start + num_rows)
        columns = [one[block].astype(wide).view(np.float64) for one in values]
        rows = np.stack(columns, axis=1)
        rows += 0.0  # no -0.0, whose place among zeros would be chance
        rows.sort(axis=1)
        made[block] = of(rows).view(wide)
    return made
