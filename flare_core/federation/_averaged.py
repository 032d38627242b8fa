"""The updates of a round as their weighted mean, folded one after the other."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

from flare_core._model import Array, Layout, ModelState, TensorClass, squared_distance
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Fold, Part
from flare_core.federation._products import Centre
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
    """

    def __init__(
        self,
        layout: Layout,
        strategy: Strategy,
        memory: Callable[[int], memoryview],
        each: Each,
        *,
        num_sites: int,
    ) -> None:
        self._strategy = strategy
        self._each = each
        self._fold = Fold(layout, memory)
        self._updates: list[Contribution] = []
        self._reach = 1.0
        self._num_sites = num_sites

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Fold an update; see `Combining`."""
        weight = self._strategy.weight(update)
        self._fold.add(weights, update.num_examples, self._each, weight=weight)
        if self._strategy.measures:
            norm = self._squared_norm(weights, before)
            update = replace(update, squared_norm=norm)
        self._updates.append(update)

    def complete(self, centre: Centre) -> str:
        """Say how far to go; see `Combining`."""
        del centre
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

    def _reach_of(self, kind: TensorClass) -> float:
        """Return how far to go; who is missing leaves a control where it is."""
        match kind:
            case TensorClass.PARAMETER:
                return self._reach
            case TensorClass.CONTROL:
                return self._fold.num_updates / self._num_sites
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
