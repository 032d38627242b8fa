"""Who takes part in a run, who is still here, and whether they fit together."""

from collections.abc import Iterator
from typing import final

from flare_core._errors import Refusal
from flare_core._plan import Plan
from flare_core.application._events import SiteJoined
from flare_core.communication import PROTOCOL, Hello, Join
from flare_core.federation import (
    differing_bases,
    differing_layouts,
    differing_schedules,
)


@final
class Lobby:
    """The sites of a run; pure.

    Args:
        plan: What will be played.

    Attributes:
        joined: What each site has said it would exchange, for the whole run.
        present: The sites that have joined and not left.
    """

    def __init__(self, plan: Plan) -> None:
        self._fingerprint = plan.fingerprint
        self._num_sites = plan.selection.sites
        self.joined: dict[str, Join] = {}
        self.present: set[str] = set()

    @property
    def full(self) -> bool:
        """Whether all sites have joined."""
        return len(self.joined) == self._num_sites

    def awaits(self, site: str) -> bool:
        """Return whether a site may still join."""
        return not self.full and site not in self.joined

    @property
    def opener(self) -> str:
        """The site whose weights the run starts from: the first one by name."""
        return min(self.joined)

    def objection(self, hello: Hello) -> str:
        """Return why a site may not take part; empty if it may."""
        if hello.protocol != PROTOCOL:
            return (
                f"site {hello.site!r} speaks protocol {hello.protocol}, this server "
                f"{PROTOCOL}; install the same version of flare-adapters at both"
            )
        if hello.site in self.present:
            return f"a site called {hello.site!r} is connected; names must be unique"
        if hello.site in self.joined:
            return (
                f"site {hello.site!r} was in this run and has left; a run takes nobody "
                "back"
            )
        return self.too_late(hello.site)

    def enter(self, site: str, join: Join) -> None:
        """Let a site take part."""
        self.joined[site] = join
        self.present.add(site)

    def leave(self, site: str) -> None:
        """Let a site go as if it had never come; before round 0 only."""
        self.joined.pop(site, None)
        self.present.discard(site)

    def event(self, site: str) -> SiteJoined:
        """Return what there is to say of a site that takes part."""
        join = self.joined[site]
        return SiteJoined(
            site,
            join.layout,
            join.stays,
            join.base,
            str(join.schedule),
            join.horizon,
        )

    def too_late(self, site: str) -> str:
        """Return why a site comes too late; empty if it does not."""
        for other in self.joined:
            if other.casefold() == site.casefold():
                return (
                    f"sites {other!r} and {site!r} would be one file where case does "
                    "not count; give them other names"
                )
        if not self.full:
            return ""
        return (
            f"the run has started with {', '.join(sorted(self.joined))} and takes no "
            f"site {site!r}; set selection.sites in the plan to the number of sites"
        )

    def refusals(self) -> list[Refusal]:
        """Return what does not fit: plans, then layouts, bases and schedules."""
        joined = self.joined
        layouts = {site: join.layout for site, join in joined.items()}
        bases = {site: join.base for site, join in joined.items()}
        schedules = {site: str(join.schedule) for site, join in joined.items()}
        return [
            *self._differing_plans(),
            *differing_layouts(layouts),
            *differing_bases(bases),
            *differing_schedules(schedules),
        ]

    def _differing_plans(self) -> Iterator[Refusal]:
        """Yield each site that would train by another plan than the one played."""
        for site in sorted(self.joined):
            if self.joined[site].plan != self._fingerprint:
                yield Refusal(
                    reason="plan",
                    site=site,
                    what="plan",
                    expected=f"that of the run, {self._fingerprint}",
                    got=self.joined[site].plan or "none",
                    advice="is the same version of flare-adapters installed at both, "
                    "and does the site speak to the server itself?",
                )
