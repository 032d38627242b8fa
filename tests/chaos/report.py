"""Plays many runs with faults, and tells in a table what became of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rich.console import Console
from rich.table import Table

import flare_core as flare
from chaos.faults import draw
from chaos.federation import ROUNDS, SITES, Outcome, play

_FLOATS = 1_000_000
_SAID = 10_000
_HERE = Path(__file__).parent
_SMALL_BYTES = 10_000
_TURNS = ("before its turn", "during its turn")


@final
@dataclass(frozen=True, slots=True)
class Loop:
    """How the sites train.

    Attributes:
        command: Their script, with its arguments.
        num_bytes: Of the model, about.
        points: Where a site can be killed that only such a loop has.
    """

    command: Sequence[str]
    num_bytes: int
    points: Sequence[str] = ()

    @classmethod
    def of(cls, framework: str) -> "Loop":
        """Return that of a framework's script, which saves its rounds."""
        script = str(_HERE / f"{framework}_site.py")
        points = ("before checkpoint", "during checkpoint", "after checkpoint")
        return cls([script], _SMALL_BYTES, points)


LOOPS = {
    "numpy": Loop([str(_HERE / "numpy_site.py"), str(_FLOATS)], 4 * _FLOATS),
    "lightning": Loop.of("lightning"),
    "huggingface": Loop.of("huggingface"),
    "monai": Loop.of("monai"),
}


def run(
    loop: str,
    runs: int,
    faults: int,
    rng: random.Random,
    *,
    topology: str = "star",
    only: int | None = None,
) -> int:
    """Play; return 0 if all went well.

    Args:
        loop: Whose sites, a name in `LOOPS`.
        runs: How many.
        faults: How many in each.
        rng: Draws them.
        topology: Who combines the updates: ``star`` or ``swarm``.
        only: The number of the only run to play.
    """
    console = Console()
    selection = flare.Selection(sites=len(SITES))
    swarms = topology == "swarm"
    plan = flare.Plan(
        rounds=ROUNDS,
        selection=selection,
        topology=flare.Swarm() if swarms else flare.Star(),
        keep_updates=not swarms,
    )
    of_sites = LOOPS[loop]
    points = [*of_sites.points, *(_TURNS if swarms else ())]
    alone = play(of_sites.command, plan, [], alone_s=0)
    console.print(f"undisturbed: {alone.seconds:.1f} s, blake3 {alone.blake3[:12]}")
    table = Table("faults", "seconds", "starts", "outcome")
    bad = bool(alone.problems)
    for number in range(runs):
        drawn = [draw(rng, SITES, of_sites.num_bytes, points) for _ in range(faults)]
        if only not in (None, number + 1):
            continue
        outcome = play(of_sites.command, plan, drawn, alone_s=alone.seconds)
        words = _words(outcome, alone.blake3)
        bad |= words != "the same model"
        told = "; ".join(map(str, drawn))
        table.add_row(told, f"{outcome.seconds:.1f}", _starts(outcome), words)
        console.print(f"{number + 1}/{runs} {told}: {words}, {outcome.seconds:.1f} s")
        for name, said in outcome.said.items():
            console.print(f"--- {name}\n{said[-_SAID:]}", markup=False)
    console.print(table)
    return int(bad)


def _words(outcome: Outcome, blake3: str) -> str:
    if outcome.problems:
        return "; ".join(outcome.problems)
    return "the same model" if outcome.blake3 == blake3 else "ANOTHER MODEL"


def _starts(outcome: Outcome) -> str:
    again = {name: n - 1 for name, n in outcome.starts.items() if n > 1}
    return ", ".join(f"{name} +{n}" for name, n in again.items())
