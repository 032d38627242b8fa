"""Which sites take part in a run, and which of them in each of its rounds."""

from typing import Annotated, Literal, TypeAlias

import msgspec

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Choose: TypeAlias = Literal["all", "random", "round_robin", "by_size", "available"]


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sites take part.

    Attributes:
        sites: Sites that must have joined before round 0 starts.
        quorum: Least number of updates a round can be made of, once sites are gone;
            those of the whole cohort where it is not set.
        newcomers: Whether sites that were not there when round 0 started may join
            between rounds; one that was may come back in any case.
        choose: How the cohort of a round is chosen: ``"all"`` who are connected;
            ``"random"``, ``"round_robin"`` or ``"by_size"``, which is a draw where a
            site has a chance by its examples, of all who have joined, connected or
            not; or ``"available"``, at random of those who are connected.
        k: Sites in a cohort, where not all are.
        seed: Another one draws other cohorts.
    """

    sites: _Count = 1
    quorum: _Count | None = None
    newcomers: bool = False
    choose: Choose = "all"
    k: _Count | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.choose == "all" and self.k is not None:
            msg = f"k = {self.k} sites are to be chosen: say how, with choose"
            raise ValueError(msg)
        if self.choose != "all" and self.k is None:
            msg = f"choose = {self.choose!r}: say how many sites, with k"
            raise ValueError(msg)
        if self.k is not None and self.k > self.sites:
            msg = f"k = {self.k} can never be chosen from sites = {self.sites}"
            raise ValueError(msg)
        if self.quorum is not None and self.quorum > self.largest:
            of = "sites" if self.k is None else "k"
            msg = f"quorum = {self.quorum} can never be met by {of} = {self.largest}"
            raise ValueError(msg)

    @property
    def largest(self) -> int:
        """Sites in a cohort, as long as no newcomers come."""
        return self.sites if self.k is None else self.k

    @property
    def least(self) -> int:
        """Least number of updates a round can be made of."""
        return self.largest if self.quorum is None else self.quorum

    @property
    def takes_who_comes(self) -> bool:
        """Whether anybody may take the place of a site that is gone."""
        return self.choose in {"all", "available"}
