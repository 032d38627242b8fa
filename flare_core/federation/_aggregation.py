"""How the updates of a round are combined, before a strategy moves the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import msgspec
import numpy as np

from flare_core._model import Array
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Part, weighted


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The updates of a round, by site, as an aggregation sees them.

    A step leads from the centre to an update, over all its floating tensors: parameters
    and buffers.  The centre is the model that the round started from, or where
    `Aggregation.follows` puts it.

    Attributes:
        updates: What is said of each.
        products: Inner product of each two steps, in float64, with the squares of their
            lengths on the diagonal; those of a step that is too long to be measured
            are infinite or no numbers.  The diagonal is 0 unless `Aggregation` says
            that it measures or compares, and the rest unless it compares.
    """

    updates: Sequence[Contribution]
    products: Array

    @property
    def lengths(self) -> Array:
        """The L2 norm of each step, in units of the parameters."""
        lengths: Array = np.sqrt(np.diagonal(self.products))
        return lengths

    @property
    def num_examples(self) -> Array:
        """The examples of each update."""
        return np.asarray([one.num_examples for one in self.updates], np.float64)


@final
@dataclass(frozen=True, slots=True)
class Shares:
    """How much of each update, and of the centre, is in what comes out.

    Attributes:
        updates: Weights, relative to each other; not below 0, and not all 0.
        centre: The fraction that is the centre's, from 0 to 1.
    """

    updates: Sequence[float]
    centre: float = 0.0


class Aggregation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Combines the updates of a round; found by name in ``flare_core.aggregations``.

    An aggregation is its settings, as a `Strategy` is: the fields of the class are what
    a plan may say under ``[aggregation.settings]``.  It sees all updates of a round at
    once, as soon as the last one is in, and their files part by part.  Counters take
    their maximum without being asked about.

    What a class does not define, is that of the mean in which each site counts the
    same.
    """

    @property
    def least(self) -> int:
        """Least number of updates with which it does what it promises."""
        return 1

    @property
    def trusts_examples(self) -> bool:
        """Whether a site counts for more that says that it has seen more examples."""
        return False

    @property
    def measures(self) -> bool:
        """Whether `share` needs the length of each step: a pass over all updates."""
        return False

    @property
    def compares(self) -> bool:
        """Whether `share` needs the product of each two steps: so much in one pass."""
        return False

    @property
    def follows(self) -> bool:
        """Whether the centre is where the step of the last round leads once more.

        Then that step is kept beside each global model, in a file on the server's disk
        that takes as much room as a float32 model.
        """
        return False

    def share(self, cohort: Cohort) -> Shares:
        """Return how much of each update is taken.

        Args:
            cohort: At least `least` updates.
        """
        return Shares([1.0] * len(cohort.updates))

    def combine(
        self, part: Part, values: Sequence[Array], weights: Sequence[float]
    ) -> Array:
        """Return one array for those of the updates; called from any thread.

        Args:
            part: Which elements of a floating tensor.
            values: Those of each update that has a weight above 0, by site, flat, in
                the tensor's type; only to be read.
            weights: That of each.

        Returns:
            The values, in float64 or complex128.
        """
        return weighted(part, values, weights)


@final
class Mean(Aggregation, frozen=True):
    """The mean, by examples, or by what the strategy weighs: one site can move it.

    The mean of updates that are all honest is the best there is, and it needs no two
    of them at a time: each is added as soon as those before it by name are in.
    """
