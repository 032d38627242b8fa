"""Plays many runs with faults, and tells in a table what became of them."""

import random
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import flare_core as flare
from chaos.faults import draw
from chaos.federation import ROUNDS, SITES, Outcome, play

_FLOATS = 1_000_000
NUM_BYTES = 4 * _FLOATS
"""Of the model."""
_SAID = 10_000
_HERE = Path(__file__).parent
LOOPS: dict[str, Sequence[str]] = {
    "numpy": [str(_HERE / "numpy_site.py"), str(_FLOATS)],
}
"""The sites' script of each loop, with its arguments."""


def run(
    loop: str, runs: int, faults: int, rng: random.Random, *, only: int | None = None
) -> int:
    """Play; return 0 if all went well.

    Args:
        loop: Whose sites, a name in `LOOPS`.
        runs: How many.
        faults: How many in each.
        rng: Draws them.
        only: The number of the only run to play.
    """
    console = Console()
    selection = flare.Selection(sites=len(SITES))
    plan = flare.Plan(rounds=ROUNDS, selection=selection, keep_updates=True)
    command = LOOPS[loop]
    alone = play(command, plan, [], alone_s=0)
    console.print(f"undisturbed: {alone.seconds:.1f} s, blake3 {alone.blake3[:12]}")
    table = Table("faults", "seconds", "starts", "outcome")
    bad = bool(alone.problems)
    for number in range(runs):
        drawn = [draw(rng, SITES, NUM_BYTES) for _ in range(faults)]
        if only not in (None, number + 1):
            continue
        outcome = play(command, plan, drawn, alone_s=alone.seconds)
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
