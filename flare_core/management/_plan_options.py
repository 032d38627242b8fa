"""The plan that a command line asks for: a file, then options, then single settings."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from flare_core._plan import Plan, plan_from
from flare_core._selection import Selection
from flare_core.management._run_folder import is_table, read_plan

DEFAULT_ROUNDS = 3
DEFAULT_SITES = 2


def plan_of(
    file: Path | None,
    *,
    sites: int | None = None,
    rounds: int | None = None,
    settings: Iterable[str] = (),
) -> Plan:
    """Return the plan; a later source wins over an earlier one.

    Args:
        file: A plan in TOML.
        sites: Sets ``selection.sites``.
        rounds: Sets ``rounds``.
        settings: Assignments such as ``"selection.quorum=3"``.

    Raises:
        ConfigurationError: If a key is unknown or a value does not fit.
    """
    plan = _from_file(file)
    if sites is not None:
        plan = _with_sites(plan, sites)
    if rounds is not None:
        plan = plan_from(
            msgspec.to_builtins(plan) | {"rounds": rounds}, source=f"--rounds {rounds}"
        )
    return plan.with_setting(*settings)


def _from_file(file: Path | None) -> Plan:
    if file is None:
        selection = Selection(sites=DEFAULT_SITES)
        return Plan(rounds=DEFAULT_ROUNDS, selection=selection)
    tree = read_plan(file)
    with_default = {"rounds": DEFAULT_ROUNDS} | tree if is_table(tree) else tree
    return plan_from(with_default, source=f"plan {file}")


def _with_sites(plan: Plan, sites: int) -> Plan:
    tree = msgspec.to_builtins(plan)
    tree["selection"]["sites"] = sites
    return plan_from(tree, source=f"--sites {sites}")
