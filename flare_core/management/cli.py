"""The command line: ``flare simulate`` and ``flare check``."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from flare_core._errors import FlareError
from flare_core._plan import Plan
from flare_core.application import Result
from flare_core.management._baselines import (
    Baselines,
    baselines,
    scores,
    scores_table,
    write_scores,
)
from flare_core.management._display import Display, display_on
from flare_core.management._failure import SiteFailedError
from flare_core.management._plan_options import (
    DEFAULT_ROUNDS,
    DEFAULT_SITES,
    plan_of,
)
from flare_core.management._play import federation, play, sites_of
from flare_core.management._preflight import Preflight, report
from flare_core.management._processes import Script
from flare_core.management._run_folder import fresh_folder
from flare_core.management._summary import Tally, summary

_INTERRUPTED = 130

_ScriptOption: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="SCRIPT.py",
        exists=True,
        dir_okay=False,
        help="A training script that joins a federation; every site runs it.",
    ),
]
_ArgsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- ARGS", help="Arguments of the script, after two dashes."
    ),
]
_SitesOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"How many sites take part.  Default: {DEFAULT_SITES}, or the plan's.",
    ),
]
_RoundsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"How many rounds to play.  Default: {DEFAULT_ROUNDS}, or the plan's.",
    ),
]
_PlanOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="A plan in TOML, such as a run folder's plan.toml."),
]
_SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the plan, e.g. strategy.mu=0.1; can be repeated "
        "and wins over all else.",
    ),
]
_RunDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the record, the logs and the global model; must be empty or "
        "new. Default: runs/SCRIPT-TIME."
    ),
]
_BaselinesOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--baselines",
        help="Then train every site alone and all data together, and compare.",
    ),
]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning with the training script you have.",
)


@app.callback()
def _flare() -> None:
    """Federated learning with the training script you have."""


@app.command("simulate")
def _simulate(
    script: _ScriptOption,
    args: _ArgsOption = None,
    *,
    sites: _SitesOption = None,
    rounds: _RoundsOption = None,
    plan: _PlanOption = None,
    settings: _SetOption = None,
    run_dir: _RunDirOption = None,
    with_baselines: _BaselinesOption = False,
) -> None:
    """Run a federation on this machine: a server, and each site a real process.

    Every site runs SCRIPT.py with FLARE_SITE set; the script asks flare_core.site()
    for its name, index and count to pick its share of the data.

    Example: flare simulate train.py --sites 4 --rounds 10 -- --lr 0.1
    """
    console = Console()
    with _exit_codes():
        chosen = plan_of(plan, sites=sites, rounds=rounds, settings=settings or ())
        folder = fresh_folder(run_dir, script)
        code = Script(path=script, args=tuple(args or ()))
        result, seconds = _federate(code, chosen, folder, console)
        if with_baselines:
            others = _train_baselines(code, chosen, folder, console)
            found = scores(result, seconds, others)
            write_scores(found, folder)
            console.print(scores_table(found, others.alone))


@app.command("check")
def _check(
    script: _ScriptOption,
    args: _ArgsOption = None,
    *,
    sites: _SitesOption = None,
    rounds: _RoundsOption = None,
    plan: _PlanOption = None,
    settings: _SetOption = None,
    run_dir: _RunDirOption = None,
) -> None:
    """Check that a federation would work, without training.

    The sites start and join; their models, frozen bases, schedules and horizons are
    compared.  Shows what would travel each round and what stays.
    """
    console = Console()
    with _exit_codes():
        chosen = plan_of(plan, sites=sites, rounds=rounds, settings=settings or ())
        code = Script(path=script, args=tuple(args or ()))
        with _check_folder(run_dir, script) as folder:
            _preflight(code, chosen, folder, console)


def main() -> None:
    """Run the command line."""
    app()


def _federate(
    script: Script, plan: Plan, folder: Path, console: Console
) -> tuple[Result, float]:
    _say(console, f"run folder {folder}")
    display, tally = display_on(console), Tally()
    names = [site.name for site in sites_of(plan.selection.sites)]
    watch = display.watch(names, plan.rounds)
    simulation = federation(script, plan, folder, observers=[watch, tally])
    with display:
        result = play([simulation])[0]
    for failure in simulation.tolerated:
        _show_failure(failure, style="yellow")
    for line in summary(result, tally, seconds=simulation.seconds, folder=folder):
        _say(console, line)
    return result, simulation.seconds


def _train_baselines(
    script: Script, plan: Plan, folder: Path, console: Console
) -> Baselines:
    def show(title: str) -> Display:
        _say(console, title)
        return display_on(console)

    return baselines(script, plan, folder, show)


def _preflight(script: Script, plan: Plan, folder: Path, console: Console) -> None:
    seen = Preflight()
    simulation = federation(script, plan, folder, observers=[seen], preflight=True)
    try:
        play([simulation])
    finally:
        for part in report(seen):
            console.print(part)
        for refusal in seen.refusals[1:]:
            _say(_errors(), str(refusal), style="red")
    count = plan.selection.sites
    _say(console, f"all {count} sites agree; nothing was trained", style="green")


@contextmanager
def _check_folder(run_dir: Path | None, script: Path) -> Generator[Path]:
    """Yield a folder; a temporary one is kept only for what failed in it."""
    if run_dir is not None:
        yield fresh_folder(run_dir, script)
        return
    folder = Path(tempfile.mkdtemp(prefix="flare-check-"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def _exit_codes() -> Generator[None]:
    """Show our errors as one message and end with the code of their kind."""
    try:
        yield
    except SiteFailedError as exc:
        _show_failure(exc, style="bold red")
        raise typer.Exit(1) from exc
    except FlareError as exc:
        _say(_errors(), str(exc), style="bold red")
        raise typer.Exit(1) from exc
    except KeyboardInterrupt as exc:
        _say(_errors(), "interrupted; every site was ended", style="yellow")
        raise typer.Exit(_INTERRUPTED) from exc


def _show_failure(failure: SiteFailedError, *, style: str) -> None:
    console = _errors()
    _say(console, failure.reason, style=style)
    if failure.last_words:
        _say(console, f"\n{failure.site} said last:", style="bold")
        _say(console, f"{failure.last_words}\n")
    _say(console, f"all its output: {failure.log}", style="dim")


def _errors() -> Console:
    return Console(stderr=True)


def _say(console: Console, line: str, *, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
