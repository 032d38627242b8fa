"""Whether a site's own policy allows what a run asks for; pure.

Each check raises `PolicyError`, before anything leaves the site.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from flare_core._errors import PolicyError, Violation
from flare_core._model import Layout
from flare_core._plan import Plan
from flare_core._site import Site

_MOST_NAMES = 5


def check_plan(site: Site, run: str, plan: Plan) -> None:
    """Check a run before the site takes part in it.

    Args:
        site: Whose policy it is.
        run: The run's name.
        plan: What would be played.
    """
    check_run(site, run)
    _check_settings(site, plan)
    fingerprint = plan.fingerprint
    if site.policy.plans and fingerprint not in site.policy.plans:
        raise _error(
            site,
            "plans",
            expected=f"one of {', '.join(site.policy.plans)}",
            got=f"the plan {fingerprint} of run {run!r}",
            advice="read that plan, and add its fingerprint if you accept it",
        )


def check_run(site: Site, run: str) -> None:
    """Check whether the site takes part in runs of this name."""
    if not matches(run, site.policy.runs):
        raise _error(
            site,
            "runs",
            expected=f"a run whose name fits {_listed(site.policy.runs)}",
            got=repr(run),
            advice="add a glob if the site shall take part in it",
        )


def check_tensors(site: Site, layout: Layout) -> None:
    """Check what the site would exchange."""
    names = [spec.name for spec in layout.tensors]
    wrong = [name for name in names if not matches(name, site.policy.tensors)]
    if wrong:
        more = f", … {len(wrong) - _MOST_NAMES} more" if wrong[_MOST_NAMES:] else ""
        raise _error(
            site,
            "tensors",
            expected=f"tensors that fit {_listed(site.policy.tensors)}",
            got=f"{_listed(wrong[:_MOST_NAMES])}{more}",
            advice="leave them out with `select`, or add a glob if they may leave",
        )


def check_bytes(site: Site, left: int, num_bytes: int) -> None:
    """Check an update before it leaves.

    Args:
        site: Whose policy it is.
        left: Bytes that have left in this run so far.
        num_bytes: The update's.
    """
    most = site.policy.most_bytes
    if most is not None and left + num_bytes > most:
        raise _error(
            site,
            "most_bytes",
            expected=f"at most {most:,} bytes in one run",
            got=f"{left:,} bytes that have left and {num_bytes:,} more",
            advice="raise it if so much may leave, or have the plan play fewer rounds "
            "or encode updates",
        )


def matches(name: str, globs: Sequence[str]) -> bool:
    """Return what the last glob that fits says; ``"!glob"`` takes out again."""
    wanted = False
    for glob in globs:
        if fnmatchcase(name, glob.removeprefix("!")):
            wanted = not glob.startswith("!")
    return wanted


def _check_settings(site: Site, plan: Plan) -> None:
    policy, least = site.policy, plan.selection.least
    if least < policy.smallest_cohort:
        raise _error(
            site,
            "smallest_cohort",
            expected=f"rounds of at least {policy.smallest_cohort} updates",
            got=f"a plan with rounds of {least}",
            advice="have selection.quorum raised in the plan; without it, rounds are "
            "of selection.k updates, or else of selection.sites",
        )
    if policy.privacy != "none":
        raise _error(
            site,
            "privacy",
            expected=policy.privacy,
            got="a plan without it, as all are that this version can play",
            advice="wait for a version that can, or set it to none if the update may "
            "be seen by the server",
        )
    if policy.most_rounds is not None and plan.rounds > policy.most_rounds:
        raise _error(
            site,
            "most_rounds",
            expected=f"at most {policy.most_rounds} rounds",
            got=f"a plan of {plan.rounds}",
            advice="raise it, or have rounds lowered in the plan",
        )


def _error(
    site: Site, key: str, *, expected: str, got: str, advice: str
) -> PolicyError:
    violation = Violation(
        rule=f"policy.{key}",
        site=site.name,
        file=site.file or "the site's settings",
        expected=expected,
        got=got,
        advice=advice,
    )
    return PolicyError(violation)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
