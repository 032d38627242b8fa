"""One round as a state machine: who is invited, who has answered, who is missing."""

from collections.abc import Callable, Iterable
from typing import Any, final


@final
class Round:
    """Tells whose updates can be folded, in the cohort's order.

    An update is ready as soon as all those before it, by site name, are in or given
    up; until then it waits.  So the result does not depend on who answered first.

    Args:
        number: The round, counted from 0.
        cohort: The sites invited.
        quorum: Least number of updates the round can be made of.
        key: Where a site stands in the order; by default by its name.
    """

    def __init__(
        self,
        number: int,
        cohort: Iterable[str],
        *,
        quorum: int,
        key: Callable[[str], Any] = str,
    ) -> None:
        self.number = number
        self._quorum = quorum
        self._key = key
        self._missing = set(cohort)
        self._given_up: set[str] = set()
        self._num_examples: dict[str, int] = {}

    @property
    def cohort(self) -> tuple[str, ...]:
        """The sites invited, in order."""
        sites = {*self._missing, *self._given_up, *self._num_examples}
        return tuple(sorted(sites, key=self._key))

    @property
    def missing(self) -> tuple[str, ...]:
        """Sites that have not answered and may still do so."""
        return tuple(sorted(self._missing))

    def awaits(self, site: str) -> bool:
        """Return whether a site has not answered and may still do so."""
        return site in self._missing

    @property
    def num_updates(self) -> int:
        """How many updates were received."""
        return len(self._num_examples)

    @property
    def num_examples(self) -> dict[str, int]:
        """Examples by site, of the updates received, in the cohort's order."""
        sites = sorted(self._num_examples, key=self._key)
        return {site: self._num_examples[site] for site in sites}

    @property
    def complete(self) -> bool:
        """Whether nobody is missing and the quorum is reached."""
        return not self._missing and len(self._num_examples) >= self._quorum

    @property
    def short_by(self) -> int:
        """How many sites would have to come for the quorum; 0 if it can be reached."""
        return max(0, self._quorum - len(self._num_examples) - len(self._missing))

    @property
    def ready(self) -> tuple[str, ...]:
        """Sites whose updates can be folded: all before the first one missing."""
        sites = sorted(self._num_examples, key=self._key)
        if not self._missing:
            return tuple(sites)
        first = min(map(self._key, self._missing))
        return tuple(site for site in sites if self._key(site) < first)

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
        if site in self._missing:
            self._missing.remove(site)
            self._given_up.add(site)

    def withdraw(self, site: str) -> None:
        """Give up a site that has answered: its answer is of no use."""
        if self._num_examples.pop(site, None) is not None:
            self._given_up.add(site)

    def invite(self, site: str) -> None:
        """Invite a site that comes late, or again; one that has answered, has.

        What was folded already may have to be folded anew: see `ready`.
        """
        self._given_up.discard(site)
        if site not in self._num_examples:
            self._missing.add(site)
