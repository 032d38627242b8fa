"""What an update counts that is not of the newest model."""

import math
from dataclasses import dataclass
from typing import final

from flare_core._plan import Plan
from flare_core._topology import Asynchronous


@final
@dataclass(frozen=True, slots=True)
class Staleness:
    """What a plan makes of updates that come late.

    The staleness of an update is how many global models came since the one that its
    site started from.

    Attributes:
        most: Greatest staleness at which an update counts; 0 if none does.
        share: The share of its examples that a stale one counts with.
        shortens: Whether the step that it is becomes shorter with its staleness.
    """

    most: int = 0
    share: float = 1.0
    shortens: bool = False

    def num_examples(self, num_examples: int) -> int:
        """Return how many examples a stale update counts with."""
        return max(1, round(num_examples * self.share))

    def pace(self, staleness: int) -> float:
        """Return how much of its step counts."""
        return 1 / math.sqrt(1 + staleness) if self.shortens else 1.0


def staleness_of(plan: Plan) -> Staleness:
    """Return what a plan makes of stale updates."""
    if isinstance(plan.topology, Asynchronous):
        return Staleness(plan.topology.most_staleness, shortens=True)
    if plan.round.late_weight is not None:
        return Staleness(1, share=plan.round.late_weight)
    return Staleness()


def counts_late(plan: Plan, trained: int, newest: int | None, *, counted: int) -> bool:
    """Return whether an update that nobody has had yet will count in a later round.

    Args:
        plan: Of the run.
        trained: The round that it answers.
        newest: The round that is played; None if the run is over.
        counted: The last round that an update of its site counted in.
    """
    if newest is None or plan.encoding.up != "none":
        return False  # what an encoded one was told against is gone
    return counted < trained and newest - trained <= staleness_of(plan).most
