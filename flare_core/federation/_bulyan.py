"""Krum, and then by element: it leaves less room to hide in."""

from collections.abc import Sequence
from typing import final

import numpy as np

from flare_core._model import Array
from flare_core.federation._aggregation import Aggregation, Cohort, Shares
from flare_core.federation._fold import Part
from flare_core.federation._krum import scores, squared_distances
from flare_core.federation._order import Hostile, by_element


@final
class Bulyan(Aggregation, frozen=True):
    r"""Of the updates that are near to others, the mean of what is near by element.

    With :math:`n` updates of which :math:`f` are hostile, ``krum`` takes one after the
    other of those that are left, until it has :math:`\theta = n - 2 f`; of each element
    the mean of the :math:`\theta - 2 f` values comes out that are nearest to the median
    of these (El Mhamdi et al., ICML 2018, https://arxiv.org/abs/1802.07927).
    An update that is near to others as a whole, and far in few elements, is left out
    there.  Each site counts the same, however many examples it has seen.

    Attributes:
        hostile: Most sites that may send anything at all; f in the paper.  It takes
            4 f + 3 updates.
    """

    hostile: Hostile = 1

    @property
    def least(self) -> int:
        """Return 4 f + 3, as the paper has it."""
        return 4 * self.hostile + 3

    @property
    def compares(self) -> bool:
        """The distances of all pairs are what it looks at first."""
        return True

    def share(self, cohort: Cohort) -> Shares:
        """Take the nearest one to most others of those that are left, many times."""
        distances = squared_distances(cohort.products)
        left = list(range(len(distances)))
        while len(left) > 2 * self.hostile:
            found = scores(distances[np.ix_(left, left)], self.hostile)
            left.pop(int(found.argmin()))
        weights = [0.0 if site in left else 1.0 for site in range(len(distances))]
        return Shares(weights)

    def combine(
        self, part: Part, values: Sequence[Array], weights: Sequence[float]
    ) -> Array:
        """Return the mean of the values that are nearest to the median."""
        del weights
        num_values = len(values)
        low, high = (num_values - 1) // 2, num_values // 2
        num_near = num_values - 2 * self.hostile

        def near(rows: Array) -> Array:
            median = (rows[:, low] + rows[:, high]) / 2
            order = np.argsort(np.abs(rows - median[:, None]), axis=1, kind="stable")
            nearest = np.take_along_axis(rows, order[:, :num_near], axis=1)
            mean: Array = nearest.sum(axis=1) / num_near
            return mean

        return by_element(part, values, near)
