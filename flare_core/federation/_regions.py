"""Sums of sums: the updates of a region are added up first, wherever that is done."""

from dataclasses import dataclass
from typing import TypeAlias, final

from flare_core._model import Layout
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Fold, Tally, Values, Weight
from flare_core.federation._strategy import Strategy

Place: TypeAlias = tuple[str, ...]
"""Where a site stands among others."""


def place(site: str) -> Place:
    """Return where a site stands in a hierarchy: those of a region stand together.

    Args:
        site: Its name; ``north.a`` is a site of the region ``north``.
    """
    return tuple(site.split("."))


def tally_of(update: Contribution, strategy: Strategy) -> Tally:
    """Return what is in an update, or in the sum that a region hands in."""
    if update.members:
        count = len(update.members)
        return Tally(count, Weight(update.weight, update.num_examples, count))
    return Tally(1, Weight(strategy.weight(update), update.num_examples, 1))


@final
@dataclass(frozen=True, slots=True)
class _Region:
    place: Place
    fold: Fold


@final
class RegionalFold:
    """Adds up the updates of each region, and then what came of the regions.

    A region's own server sums its updates in the same way, and this one goes on with
    the sum: the mean has the same bits.

    Args:
        layout: Layout of the global model.
        fold: Takes what comes of the outermost regions, and of sites in none.
    """

    def __init__(self, layout: Layout, fold: Fold) -> None:
        self._layout = layout
        self._open = [_Region((), fold)]

    def add(self, site: str, values: Values, tally: Tally, each: Each) -> None:
        """Add an update; those of a region come one after the other.

        Args:
            site: Whose it is.
            values: Returns its elements, or those of the sum that a region hands in.
            tally: What is in it.
            each: Applies a function to all batches.
        """
        region = place(site)[:-1]
        while self._innermost.place != region[: len(self._innermost.place)]:
            self._close(each)
        while self._innermost.place != region:
            inner = region[: len(self._innermost.place) + 1]
            self._open.append(_Region(inner, Fold(self._layout)))
        self._innermost.fold.add_sum(values, tally, each)

    def complete(self, each: Each) -> None:
        """Note that these are all updates."""
        while self._innermost.place:
            self._close(each)

    @property
    def _innermost(self) -> _Region:
        return self._open[-1]

    def _close(self, each: Each) -> None:
        inner = self._open.pop().fold
        self._innermost.fold.add_sum(inner.sum, inner.tally, each)
