"""The command line: ``flare simulate``, ``flare check``, and all others by name."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import typer
from rich.console import Console

from flare_core._plan import Plan
from flare_core.application import Result
from flare_core.management._audit_commands import audit_app
from flare_core.management._baselines import (
    Baselines,
    baselines,
    scores,
    scores_table,
    write_scores,
)
from flare_core.management._command_options import (
    ArgsOption,
    BaselinesOption,
    CheckDirOption,
    PlanOption,
    RoundsOption,
    RunDirOption,
    ScriptOption,
    SetOption,
    SitesOption,
)
from flare_core.management._display import Display, display_on
from flare_core.management._horizons import differing_horizons
from flare_core.management._member_commands import (
    accept,
    invite,
    members,
    revoke,
    rotate,
)
from flare_core.management._messages import complain, exit_codes, say, show_failure
from flare_core.management._plan_options import plan_of
from flare_core.management._play import (
    federation,
    play,
    require_playable,
    sites_of,
)
from flare_core.management._preflight import Preflight, report
from flare_core.management._processes import Script
from flare_core.management._replay_command import replay_command
from flare_core.management._run_commands import run_app
from flare_core.management._run_folder import fresh_folder
from flare_core.management._seal_commands import group_key, unseal
from flare_core.management._server_commands import roles, server_app, status
from flare_core.management._site_commands import site_app
from flare_core.management._strategies import strategies
from flare_core.management._summary import Tally, summary

_INTERRUPTED = "interrupted; every site was ended"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning with the training script you have.",
)


app.add_typer(audit_app, name="audit")


app.add_typer(server_app, name="server")
app.add_typer(run_app, name="run")
app.add_typer(site_app, name="site")
for _name, _one_command in (
    ("status", status),
    ("roles", roles),
    ("strategies", strategies),
    ("invite", invite),
    ("accept", accept),
    ("members", members),
    ("revoke", revoke),
    ("rotate", rotate),
    ("group-key", group_key),
    ("unseal", unseal),
    ("replay", replay_command),
):
    app.command(_name)(_one_command)


@app.callback()
def _flare() -> None:
    """Federated learning with the training script you have."""


@app.command("simulate")
def _simulate(
    script: ScriptOption,
    args: ArgsOption = None,
    *,
    sites: SitesOption = None,
    rounds: RoundsOption = None,
    plan: PlanOption = None,
    settings: SetOption = None,
    run_dir: RunDirOption = None,
    with_baselines: BaselinesOption = False,
) -> None:
    """Run a federation on this machine: a server, and each site a real process.

    Every site runs SCRIPT.py, which need not know of it: its first Lightning fit,
    Hugging Face training or MONAI Bundle takes part, unless it uses an adapter itself.
    To pick its share of the data it takes {index} and {count} from its arguments, or
    asks flare_core.site().

    Example: flare simulate train.py --sites 4 -- --part {index} --parts {count}
    """
    console = Console()
    with exit_codes(interrupted=_INTERRUPTED):
        chosen = plan_of(plan, sites=sites, rounds=rounds, settings=settings or ())
        require_playable(chosen)
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
    script: ScriptOption,
    args: ArgsOption = None,
    *,
    sites: SitesOption = None,
    rounds: RoundsOption = None,
    plan: PlanOption = None,
    settings: SetOption = None,
    run_dir: CheckDirOption = None,
) -> None:
    """Check that a federation would work, without training.

    The sites start and join; their models, frozen bases, schedules and horizons are
    compared.  Shows what would travel each round and what stays.
    """
    console = Console()
    with exit_codes(interrupted=_INTERRUPTED):
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
    say(console, f"run folder {folder}")
    tally = Tally()
    names = [site.name for site in sites_of(plan.selection.sites)]
    with display_on(console) as display:
        watch = display.watch(names, plan.rounds)
        simulation = federation(script, plan, folder, observers=[watch, tally])
        result = play([simulation])[0]
    for failure in simulation.tolerated:
        show_failure(failure, style="yellow")
    for line in summary(result, tally, seconds=simulation.seconds, folder=folder):
        say(console, line)
    return result, simulation.seconds


def _train_baselines(
    script: Script, plan: Plan, folder: Path, console: Console
) -> Baselines:
    def show(title: str) -> AbstractContextManager[Display]:
        say(console, title)
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
        for line in differing_horizons(list(seen.joined.values()), plan):
            say(console, line, style="yellow")
        for refusal in seen.refusals[1:]:
            complain(str(refusal), style="red")
    count = plan.selection.sites
    say(console, f"all {count} sites agree; nothing was trained", style="green")


@contextmanager
def _check_folder(run_dir: Path | None, script: Path) -> Generator[Path]:
    """Yield a folder; a temporary one is kept only for what failed in it."""
    if run_dir is not None:
        yield fresh_folder(run_dir, script)
        return
    folder = Path(tempfile.mkdtemp(prefix="flare-check-"))
    yield folder
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
