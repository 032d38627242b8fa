"""Who takes part in a run, who is still here, and whether they fit together."""

from collections.abc import Collection, Iterator, Mapping
from typing import final

from flare_core._errors import Refusal
from flare_core._plan import Plan
from flare_core.application._events import SiteJoined
from flare_core.communication import Join
from flare_core.federation import (
    differing_bases,
    differing_layouts,
    differing_scales,
    differing_schedules,
    differing_seals,
    place,
)


@final
class Lobby:
    """The sites of a run; pure.

    Args:
        plan: What will be played.

    Attributes:
        joined: What each site has said it would exchange, for the whole run.
        present: The sites that have joined and not left.
        gone: Those who are not here any more, or were refused, and why.
        refusals: How often something was refused, of each site of which it was.
        counted: The last round that an update of each site counted in.
    """

    def __init__(self, plan: Plan) -> None:
        self._fingerprint = plan.fingerprint
        self._by_region = plan.by_region
        self._num_sites = plan.selection.sites
        self._takes_who_comes = plan.takes_who_comes
        self._newcomers = plan.selection.newcomers
        self._most_refusals = plan.admission.most_refusals
        self.joined: dict[str, Join] = {}
        self.present: set[str] = set()
        self.gone: dict[str, str] = {}
        self.refusals: dict[str, int] = {}
        self.counted: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether all sites have joined."""
        return len(self.joined) >= self._num_sites

    def awaits(self, site: str) -> bool:
        """Return whether a site may join, or come back."""
        return site not in self.present and not self.unwanted(site)

    def may_come_back(self, site: str) -> bool:
        """Return whether a site has joined and is gone: one may be refused before."""
        return site in self.gone and site in self.joined

    @property
    def wanted(self) -> set[str]:
        """Those who have joined, gone or not, and may take part."""
        return {site for site in self.joined if not self._quarantine(site)}

    @property
    def opener(self) -> str:
        """The site whose weights the run starts from: the first one by name."""
        return min(self.joined, key=self.place)

    def first(self) -> Join:
        """Return what that site would exchange."""
        return self.joined[self.opener]

    def place(self, site: str) -> tuple[str, ...]:
        """Return where a site stands in the order, which is that of the names."""
        return place(site) if self._by_region else (site,)

    def gone_in_words(self, cohort: Collection[str]) -> str:
        """Return who is gone that a round could go on with, and why.

        Args:
            cohort: The sites that were invited to it.
        """
        able = self.joined if self._takes_who_comes else cohort
        gone = ((site, self.gone[site]) for site in sorted(self.gone))
        return "; ".join(f"{site} ({why})" for site, why in gone if site in able)

    def enter(self, site: str, join: Join) -> None:
        """Let a site take part, for the first time or again."""
        self.joined[site] = join
        self.present.add(site)
        self.gone.pop(site, None)

    def lose(self, site: str, why: str) -> None:
        """Note that a site is gone, and may come back."""
        self.present.discard(site)
        self.gone[site] = why

    def refuse(self, refusal: Refusal) -> None:
        """Note that something of a site was refused: it may try a few times."""
        site = refusal.site
        self.refusals[site] = self.refusals.get(site, 0) + 1
        self.lose(site, f"refused: {refusal}")

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

    def unwanted(self, site: str) -> str:
        """Return why a site may not join, or come back; empty if it may."""
        reason = self._quarantine(site)
        if reason or site in self.joined:
            return reason
        for other in self.joined:
            if other.casefold() == site.casefold():
                return (
                    f"sites {other!r} and {site!r} would be one file where case does "
                    "not count; give them other names"
                )
        if not self.full or self._newcomers:
            return ""
        return (
            f"the run has started with {', '.join(sorted(self.joined))} and takes no "
            f"site {site!r}; set selection.sites in the plan to the number of sites, "
            "or selection.newcomers to let others join later"
        )

    def _quarantine(self, site: str) -> str:
        times = self.refusals.get(site, 0)
        if times < self._most_refusals:
            return ""
        return (
            f"site {site!r} is in quarantine: it was refused {times} times, the last "
            f"time for this: {self.gone.get(site, 'unknown')}"
        )

    def misfits(self) -> list[Refusal]:
        """Return what does not fit of those who have joined, before round 0."""
        return _compared(self.joined, min(self.joined), self._fingerprint)

    def misfit(self, site: str, join: Join) -> Refusal | None:
        """Return what does not fit of a site that comes later, or comes back."""
        others = {n: one for n, one in self.joined.items() if n != site}
        reference = min(others, default=site)
        found = _compared({**others, site: join}, reference, self._fingerprint)
        return next((one for one in found if one.site == site), None)


def _compared(joined: Mapping[str, Join], reference: str, plan: str) -> list[Refusal]:
    """Return what does not fit: plans, layouts, scales, bases and schedules."""
    layouts = {site: join.layout for site, join in joined.items()}
    bases = {site: join.base for site, join in joined.items()}
    schedules = {site: str(join.schedule) for site, join in joined.items()}
    scales = {site: join.scales for site, join in joined.items()}
    return [
        *_differing_plans({site: join.plan for site, join in joined.items()}, plan),
        *differing_layouts(layouts, reference),
        *differing_seals({s: join.sealed for s, join in joined.items()}, reference),
        *differing_scales(scales, reference),
        *differing_bases(bases, reference),
        *differing_schedules(schedules, reference),
    ]


def _differing_plans(plans: Mapping[str, str], expected: str) -> Iterator[Refusal]:
    """Yield each site that would train by another plan than the one played."""
    for site in sorted(plans):
        if plans[site] != expected:
            yield Refusal(
                reason="plan",
                site=site,
                what="plan",
                expected=f"that of the run, {expected}",
                got=plans[site] or "none",
                advice="is the same version of flare-adapters installed at both, "
                "and does the site speak to the server itself?",
            )
