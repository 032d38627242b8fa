"""The updates of one round on their way to one model."""

from collections.abc import Callable
from typing import Protocol

from flare_core._model import Array, Layout, ModelState
from flare_core.federation._aggregation import Aggregation, Mean
from flare_core.federation._averaged import Averaged
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Part
from flare_core.federation._gathered import Gathered
from flare_core.federation._products import Centre
from flare_core.federation._strategy import Strategy


class Combining(Protocol):
    """Takes the updates of one round, and then says what they make, part by part."""

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Add the next update in the cohort's order.

        Args:
            weights: The local model; kept, and not to be changed.
            update: What is said of it.
            before: The model that the round started from.
        """
        ...

    def complete(self, centre: Centre) -> str:
        """Note that these are all updates; return why they make nothing, or "".

        Args:
            centre: Where their steps begin.
        """
        ...

    def of(self, part: Part, centre: Centre) -> Array:
        """Return what they make of a part; after `complete`, from any thread.

        Args:
            part: Which elements.
            centre: Where their steps begin.

        Returns:
            The values in float64 or complex128, or in the type of a counter.
        """
        ...


def combining(
    rule: Aggregation,
    strategy: Strategy,
    layout: Layout,
    memory: Callable[[int], memoryview],
    each: Each,
    *,
    num_sites: int,
    by_region: bool = False,
) -> Combining:
    """Return what takes the updates of one round.

    Args:
        rule: How they are combined.
        strategy: Weighs them, where they are averaged.
        layout: Of the global model.
        memory: Returns writable memory of so many bytes, for sums.
        each: Shares the parts among the cores.
        num_sites: Sites of the run.
        by_region: Whether the updates of a region are added up first.
    """
    if isinstance(rule, Mean):
        return Averaged(
            layout, strategy, memory, each, num_sites=num_sites, by_region=by_region
        )
    return Gathered(layout, rule, each)
