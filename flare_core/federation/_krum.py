"""Aggregations that take the updates which have the most others near them."""

from typing import Annotated, TypeAlias, final

import msgspec
import numpy as np

from flare_core._model import Array
from flare_core.federation._aggregation import Aggregation, Cohort, Shares
from flare_core.federation._order import Hostile

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class _Krum(Aggregation, frozen=True):
    """What the two have in common."""

    hostile: Hostile = 1

    @property
    def least(self) -> int:
        """Return 2 f + 3, as the paper has it."""
        return 2 * self.hostile + 3

    @property
    def compares(self) -> bool:
        """The distances of all pairs are what it looks at."""
        return True

    def _nearest(self, cohort: Cohort, count: int) -> Shares:
        """Take those with the least scores, all alike; of equal ones the first."""
        found = scores(squared_distances(cohort.products), self.hostile)
        weights = np.zeros(len(cohort.updates))
        weights[np.argsort(found, kind="stable")[:count]] = 1
        return Shares(weights.tolist())


@final
class Krum(_Krum, frozen=True):
    r"""One update, unchanged: the one that is nearest to most others.

    With :math:`n` updates of which :math:`f` are hostile, an update's score is the sum
    of the squared distances to its :math:`n - f - 2` nearest ones, and the least one
    is the next model (Blanchard et al., NeurIPS 2017, section 4,
    https://arxiv.org/abs/1703.02757).  What the other sites have learnt in the round is
    lost.  Each site counts the same, however many examples it has seen.

    Attributes:
        hostile: Most sites that may send anything at all; f in the paper.  It takes
            2 f + 3 updates.
    """

    def share(self, cohort: Cohort) -> Shares:
        """Take the one with the least score."""
        return self._nearest(cohort, 1)


@final
class MultiKrum(_Krum, frozen=True):
    """The mean of the updates that are nearest to most others.

    As ``krum``, but of several updates with the least scores, in which each counts the
    same (Blanchard et al., NeurIPS 2017, https://arxiv.org/abs/1703.02757).

    Attributes:
        hostile: Most sites that may send anything at all; f in the paper.  It takes
            2 f + 3 updates.
        chosen: How many updates are taken, m in the paper; all but the hostile ones if
            it is not set.  If it is more, a hostile one is among them.
    """

    chosen: _Count | None = None

    @property
    def least(self) -> int:
        """There have to be as many as are taken."""
        return max(2 * self.hostile + 3, self.chosen or 0)

    def share(self, cohort: Cohort) -> Shares:
        """Take those with the least scores."""
        return self._nearest(cohort, self.chosen or len(cohort.updates) - self.hostile)


def squared_distances(products: Array) -> Array:
    """Return those of each two updates; infinite ones of those that are too long."""
    squares = np.diagonal(products)
    with np.errstate(over="ignore", invalid="ignore"):
        distances = squares[:, None] + squares[None, :] - 2 * products
    return np.where(np.isfinite(distances), np.maximum(distances, 0), np.inf)


def scores(distances: Array, num_hostile: int) -> Array:
    """Return the sum of the squared distances from each update to the nearest ones.

    Args:
        distances: The squares, of each two.
        num_hostile: How many may be hostile; f in the paper.
    """
    others = distances.copy()
    np.fill_diagonal(others, np.inf)  # the last one of its row
    others.sort(axis=1)
    num_near = max(1, len(others) - num_hostile - 2)
    sums: Array = others[:, :num_near].sum(axis=1)
    return sums
