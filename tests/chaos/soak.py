"""Many sites and rounds of a tiny model: what the server holds must not grow.

From the root of the repository::

    python -m tests.chaos.soak --sites 24 --rounds 1000
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import final

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import flare_core as flare
from deployed import Deployment, deployment
from site_scripts import Local, model, plan, play, wander

_RUN = "soak"
_MOST_GROWTH = 0.03
_MODEL = model(*range(100))
_WARM = 0.1
"""The first rounds load what is used from then on."""


@final
class _Watch:
    """What the server holds, as its site number 0 begins each round."""

    def __init__(self, deployed: Deployment) -> None:
        self._deployed = deployed
        self._spool = deployed.folder.runs / _RUN / "spool"
        self.seen: list[Mapping[str, float]] = []

    def look(self) -> None:
        """Take note."""
        pid = self._deployed._server.pid
        files = [path for path in self._spool.rglob("*") if path.is_file()]
        store = [path for path in files if path.name.startswith("run.sqlite")]
        self.seen.append(
            {
                "memory, MB": self._deployed.rss_bytes / 1e6,
                "open files": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
                "files in the spool": len(files),
                "spool without the store, MB": _megabytes(set(files) - set(store)),
                "store, MB": _megabytes(store),
            }
        )


def _megabytes(files: set[Path] | list[Path]) -> float:
    return sum(map(_size, files)) / 1e6


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the server removes models meanwhile
        return 0


def main() -> None:
    """Read the command line, and play."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak")
    parser.add_argument("--sites", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1000)
    arguments = parser.parse_args()
    with deployment(process=True) as deployed:
        began = time.monotonic()
        seen = _play(deployed, arguments.sites, arguments.rounds)
        seconds = time.monotonic() - began
    sys.exit(_report(seen, seconds))


def _play(deployed: Deployment, sites: int, rounds: int) -> list[Mapping[str, float]]:
    watch = _Watch(deployed)
    names = [f"site-{number:02d}" for number in range(sites)]
    for name in names:
        deployed.member(name)
    deployed.create(_RUN, plan(rounds=rounds, sites=sites))

    def watched(train: Callable[[flare.ClientRound], Local]) -> Callable[..., Local]:
        def looking(current: flare.ClientRound) -> Local:
            watch.look()
            return train(current)

        return looking

    with ThreadPoolExecutor(sites) as pool:
        playing = [
            pool.submit(
                play,
                deployed.site(name, _RUN),
                _MODEL,
                watched(wander(name)) if name == names[0] else wander(name),
            )
            for name in names
        ]
        for site in playing:
            site.result()
    assert deployed.ended(_RUN).state == "finished"
    return watch.seen


def _report(seen: list[Mapping[str, float]], seconds: float) -> int:
    """Print what the halves had; return 0 if nothing grew that should not."""
    warm = seen[int(len(seen) * _WARM) :]
    half = len(warm) // 2
    table = Table("what the server holds", "first half", "last half", "growth")
    grown = False
    for what in warm[0]:
        first = fmean(one[what] for one in warm[:half])
        last = fmean(one[what] for one in warm[half:])
        growth = (last - first) / first if first else 0.0
        bounded = "store" in what
        grown |= growth > _MOST_GROWTH and not bounded
        table.add_row(what, f"{first:.2f}", f"{last:.2f}", f"{growth:+.1%}")
    console = Console()
    console.print(table)
    console.print(f"{len(seen)} rounds in {seconds:.0f} s")
    return int(grown)


main()
