"""Who is invited to the next round, whoever comes while it is being opened."""

from collections.abc import Mapping
from typing import final

from flare_core._selection import Selection
from flare_core.application._lobby import Lobby
from flare_core.federation import invited


@final
class Cohorts:
    """Chooses the cohort of each round.

    Args:
        selection: The plan's word.
        lobby: Who takes part.
    """

    def __init__(self, selection: Selection, lobby: Lobby) -> None:
        self._selection = selection
        self._lobby = lobby
        self._sizes: dict[str, int] = {}
        self._next: set[str] | None = None

    @property
    def sizes(self) -> Mapping[str, int]:
        """Examples in the last update of each site that counted."""
        return self._sizes

    def learn(self, sizes: Mapping[str, int]) -> None:
        """Take note of the examples of sites whose updates have counted."""
        self._sizes |= sizes

    def choose(self, number: int) -> frozenset[str]:
        """Choose who is invited to a round that is about to be opened."""
        self._next = invited(
            self._selection,
            number,
            joined=self._lobby.wanted,
            present=self._lobby.present,
            sizes=self._sizes,
        )
        return frozenset(self._next)

    def opened(self) -> set[str]:
        """Return who is invited to the round that is open now."""
        chosen, self._next = self._next, None
        return chosen or set()

    def since(self, site: str, number: int) -> int:
        """Return the first round that may invite a site that comes between two rounds.

        Args:
            site: Which.
            number: The next round, for which the cohort may be chosen already.
        """
        chosen = self._next
        if chosen is None or site in chosen:
            return number
        if self._selection.takes_who_comes and len(chosen) < self._room:
            chosen.add(site)
            return number
        return number + 1

    @property
    def _room(self) -> float:
        """How many sites a cohort has at most."""
        k = self._selection.k
        return float("inf") if k is None else k
