"""Aggregations that shorten the steps of the updates."""

from typing import Annotated, TypeAlias, final

import msgspec
import numpy as np

from flare_core._model import Array
from flare_core.federation._aggregation import Aggregation, Cohort, Shares
from flare_core.federation._geometric import distances_from

_Length: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]


@final
class NormBounding(Aggregation, frozen=True):
    r"""The mean of the updates, after each step that is too long was shortened.

    With weights :math:`p_k` that sum to 1, the model goes by
    :math:`\sum_k p_k \Delta_k \min(1, C / \|\Delta_k\|)` (Sun et al., 2019,
    https://arxiv.org/abs/1911.07963): one site moves it by no more than
    :math:`C p_k`.  If no step is too long, it is the mean, bit for bit.  It bounds what
    a site can do in a round, and does not find out whether it means ill.

    Attributes:
        most_norm: Longest step that counts as it is: the L2 norm of what an update
            changes in all floating tensors; C in the formula.
        by_examples: Whether sites weigh by their examples instead of all the same.
            What a site says of them is believed: the plan has to set
            ``admission.most_examples``.
    """

    most_norm: _Length
    by_examples: bool = False

    @property
    def trusts_examples(self) -> bool:
        """As it is told."""
        return self.by_examples

    @property
    def measures(self) -> bool:
        """The lengths are what it looks at."""
        return True

    def share(self, cohort: Cohort) -> Shares:
        """Leave to the centre what is taken of the long steps."""
        kept = _kept(cohort.lengths, self.most_norm)
        whole = cohort.num_examples if self.by_examples else np.ones(len(kept))
        weights = whole * kept
        return Shares(weights.tolist(), centre=1 - weights.sum() / whole.sum())


@final
class CentredClipping(Aggregation, frozen=True):
    r"""The step of the last round, moved towards each update by no more than a length.

    From the last round's step :math:`v`, in the first round from 0, each iteration goes
    to :math:`v + \frac{1}{n} \sum_k (\Delta_k - v) \min(1, \tau / \|\Delta_k - v\|)`
    (Karimireddy et al., ICML 2021, https://arxiv.org/abs/2012.10333).  The
    paper has sites send the momentum of their gradients; here they send what their
    local training changed, and what is carried on from round to round is the centre.
    Each site counts the same, however many examples it has seen.

    Attributes:
        radius: How far a site can pull in an iteration, as the L2 norm of all floating
            tensors; τ in the paper.
        iterations: l in the paper; a site moves the model by no more than the radius by
            the iterations, divided by the number of sites.
    """

    radius: _Length
    iterations: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1

    @property
    def measures(self) -> bool:
        """From the centre on, the lengths are all that it looks at."""
        return True

    @property
    def compares(self) -> bool:
        """Where it is between the updates, their angles count."""
        return self.iterations > 1

    @property
    def follows(self) -> bool:
        """The centre is the step of the last round."""
        return True

    def share(self, cohort: Cohort) -> Shares:
        """Go towards the updates, from the centre on."""
        near = np.isfinite(cohort.lengths)
        products = np.where(np.outer(near, near), cohort.products, 0)
        fractions, num_updates = np.zeros(len(near)), len(near)
        for _ in range(self.iterations):
            distances = distances_from(fractions, products)
            kept = _kept(distances, self.radius) * near / num_updates
            fractions = fractions * (1 - kept.sum()) + kept
        return Shares(fractions.tolist(), centre=max(0.0, 1 - fractions.sum()))


def _kept(lengths: Array, most: float) -> Array:
    """Return the fraction that is left of steps of these lengths."""
    return most / np.maximum(lengths, most)
