"""``flare run``: a command under the federation, and the runs of a server."""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import tomli_w
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from flare_core._errors import ConfigurationError
from flare_core._site import RUN_VARIABLE, SITE_VARIABLE
from flare_core.application import Result, RoundRecord
from flare_core.communication import (
    CreateRun,
    Done,
    ListRuns,
    RunInfo,
    ShowRun,
    StopRun,
)
from flare_core.management._account import HomeOption, account_of, site_file_of
from flare_core.management._command_options import SetOption
from flare_core.management._messages import exit_codes, say
from flare_core.management._plan_options import plan_of
from flare_core.management._run_folder import without_nulls
from flare_core.management._run_reading import best_of, download, follow, whole
from flare_core.management._unchanged import adapted
from flare_core.management._wording import (
    best_text,
    cohort_text,
    lora_text,
    scores_text,
)

_COMMAND = "command"
_HASH = 12
_RunArgument: TypeAlias = Annotated[str, typer.Argument(help="The run's name.")]


class _RunGroup(TyperGroup):
    """Takes what is none of its commands for one of the user's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put our word in front of a command of the user's."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_COMMAND, *args]
        return super().parse_args(ctx, args)


run_app = typer.Typer(
    cls=_RunGroup,
    no_args_is_help=True,
    help="Run a command of yours as a site: `flare run train.py`, `flare run torchrun "
    "... train.py`; or manage the runs of a server.",
)


@run_app.command(
    _COMMAND,
    hidden=True,
    context_settings={
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
    },
)
def _command(
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND ARGS", help="What to run.")
    ],
    *,
    home: HomeOption = Path(),
    run: Annotated[
        str,
        typer.Option(help="The run to take part in.  Default: the one that awaits us."),
    ] = "",
) -> None:
    """Run a command with this site's file, so that an unchanged script takes part."""
    with exit_codes():
        environment = site_environment(site_file_of(home), run)
        command = command_line(words)
        try:
            # It takes the place of this process: signals and the exit code are its own.
            os.execvpe(command[0], command, environment)  # noqa: S606 - the user's own
        except OSError as exc:
            msg = f"cannot run {shlex.join(command)}: {exc.strerror}"
            raise ConfigurationError(msg) from exc


@run_app.command("create")
def _create(
    plan: Annotated[Path, typer.Argument(help="A plan in TOML.")],
    *,
    name: Annotated[
        str, typer.Option(help="The run's name.  Default: that of the plan's file.")
    ] = "",
    settings: SetOption = None,
    home: HomeOption = Path(),
) -> None:
    """Open a run for sites to join; it starts when all of them agree."""
    with exit_codes(), account_of(home).control() as control:
        chosen = plan_of(plan, settings=settings or ())
        called = name or plan.stem
        try:
            request = msgspec.convert(
                {
                    "type": "CreateRun",
                    "name": called,
                    "plan": msgspec.to_builtins(chosen),
                },
                CreateRun,
            )
        except msgspec.ValidationError as exc:
            msg = f"--name {called}: {exc}; letters, digits, '.', '_', '-', at most 64"
            raise ConfigurationError(msg) from exc
        control.ask(request, Done)
        say(Console(), f"run {called} awaits {chosen.selection.sites} sites")
        say(Console(), f"plan {chosen.fingerprint}")


@run_app.command("list")
def _list(*, home: HomeOption = Path()) -> None:
    """List the runs of a server."""
    table = Table(box=None)
    for column in ("run", "state", "sites", "rounds", "created", "by"):
        table.add_column(column)
    with exit_codes(), account_of(home).control() as control:
        for info in control.ask(ListRuns(), list[RunInfo]):
            table.add_row(
                info.name,
                info.state,
                f"{len(info.sites)}/{info.plan.selection.sites}",
                f"{info.rounds}/{info.plan.rounds}",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created)),
                info.creator,
            )
        Console().print(table)


@run_app.command("show")
def _show(run: _RunArgument, *, home: HomeOption = Path()) -> None:
    """Show a run: its plan, who takes part, and what came of each round."""
    console = Console()
    with exit_codes(), account_of(home).control() as control:
        info = control.ask(ShowRun(run=run), RunInfo)
        records = whole(control, run, "rounds.jsonl").splitlines()
        say(console, f"run {info.name}: {info.state}", style="bold")
        if info.error:
            say(console, info.error, style="red")
        say(console, f"sites now: {', '.join(info.sites) or 'none'}")
        say(console, f"plan {info.plan.fingerprint}")
        tree = without_nulls(msgspec.to_builtins(info.plan))
        say(console, tomli_w.dumps(tree).rstrip(), style="dim")
        for line in records:
            record = msgspec.json.decode(line, type=RoundRecord)
            say(console, _round(record, info.plan.selection.sites))
            if record.lora is not None:
                say(console, f"  {lora_text(record.lora)}", style="dim")
        if ended := whole(control, run, "result.json"):
            result = msgspec.json.decode(ended, type=Result)
            if result.stopped:
                say(console, f"ended early: {result.stopped}")
        if best := best_of(control, run):
            say(console, f"best model: {best_text(best, info.rounds)}")
        if info.blake3:
            say(console, f"blake3 {info.blake3}")


@run_app.command("stop")
def _stop(
    run: _RunArgument,
    *,
    reason: Annotated[str, typer.Option(help="What its sites are told.")] = "no reason",
    home: HomeOption = Path(),
) -> None:
    """End a run for all."""
    with exit_codes(), account_of(home).control() as control:
        control.ask(StopRun(run=run, reason=reason), Done)
        say(Console(), f"run {run} is stopped")


@run_app.command("watch")
def _watch(run: _RunArgument, *, home: HomeOption = Path()) -> None:
    """Follow a run until it is over; ends with 1 if it failed."""
    with exit_codes(), account_of(home).control() as control:
        for line in follow(control, run):
            say(Console(), line)
        info = control.ask(ShowRun(run=run), RunInfo)
        say(Console(), f"run {run}: {info.state}  {info.error}".rstrip())
        say(Console(), f"blake3 {info.blake3}")
        if info.state != "finished":
            raise typer.Exit(1)


@run_app.command("download")
def _download(
    run: _RunArgument,
    folder: Annotated[
        Path | None, typer.Argument(help="Where to.  Default: a folder of its name.")
    ] = None,
    *,
    best: Annotated[
        bool, typer.Option("--best", help="Get the best global model, too.")
    ] = False,
    home: HomeOption = Path(),
) -> None:
    """Get the record of a run, and its newest global model."""
    with exit_codes(), account_of(home).control() as control:
        for path in download(control, run, folder or Path(run), best=best):
            say(Console(), str(path))


def _round(record: RoundRecord, num_sites: int) -> str:
    parts = [
        cohort_text(record, num_sites),
        scores_text(record),
        f"blake3 {record.blake3[:_HASH]}",
    ]
    return f"round {record.round}: {'  '.join(filter(None, parts))}"


def command_line(words: Sequence[str]) -> list[str]:
    """Return a command; a script stands for this Python with the script."""
    return [sys.executable, *words] if words[0].endswith(".py") else [*words]


def site_environment(
    site_file: Path, run: str = "", *, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment in which a site's command takes part in a run.

    Args:
        site_file: Who it is.
        run: The run; if empty, the one that awaits the site.
        more: Variables beside those of this process.
    """
    given = {**os.environ, **(more or {})}
    environment = adapted(given) | {SITE_VARIABLE: str(site_file.absolute())}
    return environment | ({RUN_VARIABLE: run} if run else {})
