"""The updates of a round as an aggregation combines them, once all are in."""

from functools import reduce
from typing import final

import numpy as np

from flare_core._model import Array, Layout, ModelState, TensorClass
from flare_core.federation._aggregation import Aggregation, Cohort, Shares
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Part, batches
from flare_core.federation._products import Centre, products


@final
class Gathered:
    """Keeps the updates until the last one is in; they stay in their files.

    Args:
        layout: Of the global model.
        rule: Combines them.
        each: Shares the parts among the cores.
    """

    def __init__(self, layout: Layout, rule: Aggregation, each: Each) -> None:
        self._layout = layout
        self._rule = rule
        self._each = each
        self._weights: list[ModelState] = []
        self._updates: list[Contribution] = []
        self._shares = Shares([])

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Take an update; see `Combining`."""
        del before
        self._weights.append(weights)
        self._updates.append(update)

    def complete(self, centre: Centre) -> str:
        """Weigh the updates; see `Combining`."""
        found, least = len(self._updates), self._rule.least
        if found < least:
            return f"it is made of {found} updates, and needs {least}"
        self._shares = self._rule.share(self._cohort(centre))
        return ""

    def of(self, part: Part, centre: Centre) -> Array:
        """Return what comes out; see `Combining`."""
        values = [part.of(weights) for weights in self._weights]
        if part.spec.kind is TensorClass.COUNTER:
            return reduce(np.maximum, values)
        pairs = zip(values, self._shares.updates, strict=True)
        taken = [(one, weight) for one, weight in pairs if weight > 0]
        if not taken:
            return centre(part)
        values, weights = map(list, zip(*taken, strict=True))
        combined = self._rule.combine(part, values, weights)
        fraction = self._shares.centre
        if fraction:
            combined = (1 - fraction) * combined + fraction * centre(part)
        return combined

    def _cohort(self, centre: Centre) -> Cohort:
        found = np.zeros((len(self._updates), len(self._updates)))
        if self._rule.measures or self._rule.compares:
            found = products(
                self._weights,
                centre,
                batches(self._layout),
                self._each,
                pairs=self._rule.compares,
            )
        return Cohort(updates=tuple(self._updates), products=found)
