"""One round as a state machine: who is invited, who has answered, who is missing."""

from collections.abc import Iterable
from typing import final

from flare_core._model import Layout, ModelState, Update
from flare_core.federation._fold import Fold


@final
class Round:
    """Collects the updates of one round and folds them in the cohort's order.

    An update is folded as soon as all those before it, by site name, are in or given
    up; until then it waits.  So the result does not depend on who answered first.

    Args:
        number: The round, counted from 0.
        cohort: The sites invited.
        layout: Layout of the global model.
        quorum: Least number of updates the round can be made of.
    """

    def __init__(
        self, number: int, cohort: Iterable[str], layout: Layout, *, quorum: int
    ) -> None:
        self.number = number
        self.cohort = tuple(sorted(cohort))
        self._quorum = quorum
        self._fold = Fold(layout)
        self._pending = list(self.cohort)
        self._waiting: dict[str, Update] = {}
        self._missing = set(self.cohort)
        self._num_examples: dict[str, int] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Sites that have not answered and may still do so."""
        return tuple(sorted(self._missing))

    @property
    def num_examples(self) -> dict[str, int]:
        """Examples by site, of the updates received, in the cohort's order."""
        return {
            site: self._num_examples[site]
            for site in self.cohort
            if site in self._num_examples
        }

    @property
    def complete(self) -> bool:
        """Whether nobody is missing and the quorum is reached."""
        return not self._missing and len(self._num_examples) >= self._quorum

    @property
    def hopeless(self) -> bool:
        """Whether the quorum cannot be reached any more."""
        return len(self._num_examples) + len(self._missing) < self._quorum

    def receive(self, update: Update) -> bool:
        """Take an update in.

        Returns:
            Whether it counts; a late, repeated or uninvited one does not.
        """
        if update.round_number != self.number or update.site not in self._missing:
            return False
        self._missing.remove(update.site)
        self._num_examples[update.site] = update.num_examples
        self._waiting[update.site] = update
        self._fold_what_is_next()
        return True

    def lose(self, site: str) -> None:
        """Give up a site that has not answered; one that has, still counts."""
        if site in self._missing:
            self._missing.remove(site)
            self._fold_what_is_next()

    def mean(self) -> ModelState:
        """Return the weighted mean of the updates.

        Raises:
            ValueError: If the round is not complete.
        """
        if not self.complete:
            msg = f"round {self.number} is not complete: missing {self.missing}"
            raise ValueError(msg)
        return self._fold.mean()

    def _fold_what_is_next(self) -> None:
        while self._pending and self._pending[0] not in self._missing:
            update = self._waiting.pop(self._pending.pop(0), None)
            if update is not None:
                self._fold.add(update.weights, update.num_examples)
