"""Who is invited to the next round, whoever comes while it is being opened."""

from collections.abc import Mapping
from typing import final

from flare_core._plan import Plan
from flare_core._topology import Cyclic
from flare_core.application._lobby import Lobby
from flare_core.federation import Round, invited


@final
class Cohorts:
    """Chooses the cohort of each round.

    Args:
        plan: What is played.
        lobby: Who takes part.
    """

    def __init__(self, plan: Plan, lobby: Lobby) -> None:
        self._selection = plan.selection
        self._takes_who_comes = plan.takes_who_comes
        self._passes_on = isinstance(plan.topology, Cyclic) and plan.topology.pass_on
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
        self._next = self._chosen(number)
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
        if self._takes_who_comes and len(chosen) < self._room:
            chosen.add(site)
            return number
        return number + 1

    def takes(self, site: str, current: Round, *, paused: bool) -> bool:
        """Return whether a site that comes may take part in a round that is open.

        Args:
            site: Which.
            current: The round.
            paused: Whether it waits for sites that are gone.
        """
        if self._passes_on:
            return site in current.num_examples or current.short_by > 0
        return site in current.cohort or (paused and self._takes_who_comes)

    def instead(self, current: Round) -> str | None:
        """Return who has the turn of a site that is gone, if it passes on."""
        if not (self._passes_on and current.short_by):
            return None
        return next(iter(self._chosen(current.number)), None)

    def _chosen(self, number: int) -> set[str]:
        present = self._lobby.present
        return invited(
            self._selection,
            number,
            joined=present if self._passes_on else self._lobby.wanted,
            present=present,
            sizes=self._sizes,
        )

    @property
    def _room(self) -> float:
        """How many sites a cohort has at most."""
        k = self._selection.k
        return float("inf") if k is None else k
