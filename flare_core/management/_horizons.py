"""How long each script's own loop is, against the plan and the other sites.

A horizon is in the words of the script's framework, such as ``max_epochs=10``.  Where
it tells its length in the unit of the plan's schedule, it is compared with the plan;
where not, with what most sites say.  The plan sets the length in any case, so that a
difference is worth a warning and no more.
"""

import re
from collections.abc import Iterator, Sequence

from flare_core._plan import Plan
from flare_core.application import SiteJoined

_LIMIT = re.compile(r"(epochs|steps)=(\d+)(?![\w.])")
_SCHEDULE = re.compile(r"every_n_(epochs|steps) = (\d+)")
_ADVICE = (
    "the plan sets the length, so only an LR schedule that the script itself builds "
    "for its own length needs a change"
)


def differing_horizons(joined: Sequence[SiteJoined], plan: Plan) -> Iterator[str]:
    """Yield a warning for each horizon that differs, with the sites that have it.

    Args:
        joined: What the sites said.
        plan: What they are to play.
    """
    sites: dict[str, list[SiteJoined]] = {}
    for one in sorted(joined, key=lambda one: one.site):
        sites.setdefault(one.horizon, []).append(one)
    usual = max(sites, key=lambda horizon: len(sites[horizon]), default="")
    for horizon, same in sites.items():
        expected = _expected(same[0], plan, sites[usual][0])
        if expected:
            got = horizon or "none"
            yield f"{_named(same)}: horizon: expected {expected}, got {got}; {_ADVICE}"


def _expected(site: SiteJoined, plan: Plan, usual: SiteJoined) -> str:
    """Return what a site's horizon should have been; nothing if it is right."""
    every = _SCHEDULE.fullmatch(site.schedule)
    own = _length(site.horizon, every[1]) if every else None
    if every and own is not None:
        planned = plan.rounds * int(every[2])
        rounds = f"rounds = {plan.rounds}, {site.schedule}"
        return "" if own == planned else f"{planned} {every[1]} as planned ({rounds})"
    if site.horizon == usual.horizon:
        return ""
    return f"{usual.horizon or 'none'} as at site {usual.site!r}"


def _length(horizon: str, unit: str) -> int | None:
    """Return its length in a unit; where steps are limited, epochs tell nothing."""
    limits = dict(_LIMIT.findall(horizon))
    if unit not in limits or (unit == "epochs" and "steps" in limits):
        return None
    return int(limits[unit])


def _named(sites: Sequence[SiteJoined]) -> str:
    names = ", ".join(repr(one.site) for one in sites)
    return f"{'site' if len(sites) == 1 else 'sites'} {names}"
