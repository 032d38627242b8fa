"""``flare replay``: derive the global models of a run again."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flare_core._errors import ConfigurationError
from flare_core._plan import Plan, plan_from
from flare_core.application import RoundRecord, replay
from flare_core.management._messages import complain, exit_codes, say
from flare_core.management._run_folder import PLAN, read_plan, read_rounds
from flare_core.management._wording import counted

_HASH = 12


def replay_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder, or runs/NAME in a server's folder."
        ),
    ],
) -> None:
    """Derive every global model of a run again; ends with 1 if one is another.

    The plan must have had keep_updates = true.  The updates that were kept are folded
    as the server did it, and each model's hash is compared with the record's.
    """
    console = Console()
    with exit_codes():
        plan, records = _recorded(run)
        first = None
        for one in replay(plan, records, run):
            updates = counted(one.num_updates, "update")
            digest = f"  blake3 {one.blake3[:_HASH]}" if one.blake3 else ""
            verdict = "parts from the record" if one.partings else "as on record"
            say(console, f"round {one.round}: {updates}{digest}  {verdict}")
            for parting in one.partings:
                complain(f"round {one.round}: {parting}", style="red")
            if one.partings and first is None:
                first = one.round
        if first is not None:
            complain(f"it parts from the record at round {first}", style="bold red")
            raise typer.Exit(1)
        rounds = counted(len(records), "round")
        say(console, f"{rounds} derived again, bit for bit", style="green")


def _recorded(run: Path) -> tuple[Plan, list[RoundRecord]]:
    """Return what a run folder says of its plan and its rounds.

    Raises:
        ConfigurationError: If it cannot be read, or there is nothing to derive.
    """
    path = run / PLAN
    if not path.is_file():
        msg = (
            f"{run} is not the folder of a run: there is no {PLAN} in it; give the one "
            "that `flare simulate --run-dir` made, or runs/NAME in a server's folder"
        )
        raise ConfigurationError(msg)
    plan = plan_from(read_plan(path), source=f"plan {path}")
    records = read_rounds(run)
    if not plan.keep_updates:
        msg = f"{path} does not say keep_updates = true: no update of the run was kept"
        raise ConfigurationError(msg)
    if not records:
        msg = f"run folder {run}: no round is on record yet"
        raise ConfigurationError(msg)
    return plan, records
