"""The updates of a round as their weighted mean, folded one after the other."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

from flare_core._model import Array, Layout, ModelState, TensorClass, squared_distance
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Fold, Part, Tally
from flare_core.federation._products import Centre
from flare_core.federation._regions import RegionalFold, tally_of
from flare_core.federation._strategy import Strategy


@final
class Averaged:
    """The mean, weighed as the strategy says: it needs one update at a time.

    Args:
        layout: Of the global model.
        strategy: Weighs the updates.
        memory: Returns writable memory of so many bytes, for the sums.
        each: Shares the parts among the cores.
        num_sites: Sites of the run.
        by_region: Whether the updates of a region are added up first.
    """

    def __init__(
        self,
        layout: Layout,
        strategy: Strategy,
        memory: Callable[[int], memoryview],
        each: Each,
        *,
        num_sites: int,
        by_region: bool = False,
    ) -> None:
        self._strategy = strategy
        self._each = each
        self._fold = Fold(layout, memory)
        self._regions = RegionalFold(layout, self._fold) if by_region else None
        self._updates: list[Contribution] = []
        self._reach = 1.0
        self._num_sites = num_sites

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Fold an update; see `Combining`."""
        tally = tally_of(update, self._strategy)

        def values(part: Part) -> Array:
            return part.of(weights)

        if self._regions is None:
            self._fold.add_sum(values, tally, self._each)
        else:
            self._regions.add(update.site, values, tally, self._each)
        if self._strategy.measures and not update.members:
            norm = self._squared_norm(weights, before)
            update = replace(update, squared_norm=norm)
        self._updates += update.members or (update,)

    def complete(self, centre: Centre) -> str:
        """Say how far to go; see `Combining`."""
        del centre
        if self._regions is not None:
            self._regions.complete(self._each)
        self._reach = self._strategy.reach(self._updates)
        return ""

    def of(self, part: Part, centre: Centre) -> Array:
        """Return the mean, or what is as far from the centre as it is to go."""
        mean, reach = self._fold.mean(part), self._reach_of(part.spec.kind)
        if reach == 1:
            return mean
        start = centre(part)
        reached: Array = start + reach * (mean - start)
        return reached

    @property
    def updates(self) -> Sequence[Contribution]:
        """What was added, of each site, by its order."""
        return self._updates

    @property
    def tally(self) -> Tally:
        """What was added, and how much it weighs."""
        return self._fold.tally

    def sum_of(self, part: Part) -> Array:
        """Return the sum of a part, for another server to go on with; see `Fold`."""
        return self._fold.sum(part)

    def _reach_of(self, kind: TensorClass) -> float:
        """Return how far to go; who is missing leaves a control where it is."""
        match kind:
            case TensorClass.PARAMETER:
                return self._reach
            case TensorClass.CONTROL:
                return self._fold.tally.updates / self._num_sites
            case _:
                return 1.0

    def _squared_norm(self, weights: ModelState, before: ModelState) -> float:
        def squares(batch: Sequence[Part]) -> list[float]:
            return [
                squared_distance(part.of(weights), part.of(before))
                for part in batch
                if part.spec.kind is TensorClass.PARAMETER
            ]

        each = self._each(squares, self._fold.batches)
        # Not fsum: a round may not end with the infinite updates of two of its sites.
        return sum(itertools.chain.from_iterable(each))
