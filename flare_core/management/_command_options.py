"""What the commands can be told, with the words of their help."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from flare_core.management._plan_options import DEFAULT_ROUNDS, DEFAULT_SITES

ScriptOption: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="SCRIPT.py",
        exists=True,
        dir_okay=False,
        help="A training script, changed or not; every site runs it.",
    ),
]
ArgsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- ARGS",
        help="Arguments of the script, after two dashes; {site}, {index} and {count} "
        "in them become the site's own.",
    ),
]
SitesOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"How many sites take part.  Default: {DEFAULT_SITES}, or the plan's.",
    ),
]
RoundsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"How many rounds to play.  Default: {DEFAULT_ROUNDS}, or the plan's.",
    ),
]
PlanOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="A plan in TOML, such as a run folder's plan.toml."),
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the plan, e.g. strategy.name=fedadam; can be "
        "repeated and wins over all else.",
    ),
]
RunDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the record, the logs and the global model; must be empty or "
        "new. Default: runs/SCRIPT-TIME."
    ),
]
CheckDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the sites' files and logs; must be empty or new. Default: a "
        "temporary one, kept only if the check fails."
    ),
]
BaselinesOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--baselines",
        help="Then train every site alone and all data together, and compare.",
    ),
]
