"""The geometric median, by Weiszfeld's algorithm."""

from typing import Annotated, TypeAlias, final

import msgspec
import numpy as np

from flare_core._model import Array
from flare_core.federation._aggregation import Aggregation, Cohort, Shares

_Smoothing: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1000)]
_MOST_STEPS = 10_000
_STILL = 1e-14
"""Weights that change by no more, relative to each one, have settled."""


@final
class GeometricMedian(Aggregation, frozen=True):
    r"""The point with the least sum of distances to all updates: RFA.

    With weights :math:`\alpha_k` it has the least :math:`\sum_k \alpha_k \|v - w_k\|`,
    where a distance below :math:`\nu` is smoothed; found by Weiszfeld's algorithm
    (Pillutla et al., IEEE Trans. Signal Processing 2022,
    https://arxiv.org/abs/1912.13445).  It stays near the honest sites as long as these
    have more than half of the weight, and is a weighted mean of the updates: those that
    are far from the others weigh little, but something.

    Attributes:
        by_examples: Whether sites weigh by their examples, as in the paper, instead of
            all the same.  What a site says of them is believed: the plan has to set
            ``admission.most_examples``.
        smoothing: Distances below it count as it, in units of the parameters; nu in the
            paper.
    """

    by_examples: bool = False
    smoothing: _Smoothing = 1e-6

    @property
    def least(self) -> int:
        """Of three, one may be hostile; of fewer, none."""
        return 3

    @property
    def trusts_examples(self) -> bool:
        """As it is told."""
        return self.by_examples

    @property
    def compares(self) -> bool:
        """All that it does can be told by the products."""
        return True

    def share(self, cohort: Cohort) -> Shares:
        """Weigh each update by how near it is."""
        weights = np.ones(len(cohort.updates))
        if self.by_examples:
            weights = cohort.num_examples
        weights[~np.isfinite(cohort.lengths)] = 0  # infinitely far
        if not weights.any():
            return Shares(weights.tolist(), centre=1.0)
        near = weights > 0
        products = cohort.products[np.ix_(near, near)]
        weights[near] = self._weiszfeld(weights[near], products)
        return Shares(weights.tolist())

    def _weiszfeld(self, weights: Array, products: Array) -> Array:
        """Return the fractions; from the centre on, as the mean may be anywhere."""
        fractions = self._nearest_most(weights, np.sqrt(np.diagonal(products)))
        for _ in range(_MOST_STEPS):
            before = fractions
            distances = distances_from(fractions, products)
            fractions = self._nearest_most(weights, distances)
            if (np.abs(fractions - before) <= _STILL * before).all():
                break
        return fractions

    def _nearest_most(self, weights: Array, distances: Array) -> Array:
        near = weights / np.maximum(distances, self.smoothing)
        fractions: Array = near / near.sum()
        return fractions


def distances_from(fractions: Array, products: Array) -> Array:
    """Return how far each update is from a point between them.

    Args:
        fractions: How much of each step leads to that point, from the centre.
        products: Inner product of each two steps; all finite.
    """
    # no matrix product: how it adds up would be the machine's choice
    along = (products * fractions).sum(axis=1)
    square = (along * fractions).sum()
    squares = np.diagonal(products) - 2 * along + square
    distances: Array = np.sqrt(np.maximum(squares, 0))
    return distances
