"""One round as a state machine: who is invited, who has answered, who is missing."""

from collections.abc import Iterable, Iterator
from typing import final


@final
class Round:
    """Tells whose update is to be folded next, in the cohort's order.

    An update is due as soon as all those before it, by site name, are in or given up;
    until then it waits.  So the result does not depend on who answered first.

    Args:
        number: The round, counted from 0.
        cohort: The sites invited.
        quorum: Least number of updates the round can be made of.
    """

    def __init__(self, number: int, cohort: Iterable[str], *, quorum: int) -> None:
        self.number = number
        self.cohort = tuple(sorted(cohort))
        self._quorum = quorum
        self._pending = list(self.cohort)
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

    def receive(self, site: str, round_number: int, num_examples: int) -> bool:
        """Take note of an update.

        Returns:
            Whether it counts; a late, repeated or uninvited one does not.
        """
        if round_number != self.number or site not in self._missing:
            return False
        self._missing.remove(site)
        self._num_examples[site] = num_examples
        return True

    def lose(self, site: str) -> None:
        """Give up a site that has not answered; one that has, still counts."""
        self._missing.discard(site)

    def due(self) -> Iterator[str]:
        """Yield the sites whose updates are to be folded now, each once."""
        while self._pending and self._pending[0] not in self._missing:
            site = self._pending.pop(0)
            if site in self._num_examples:
                yield site
