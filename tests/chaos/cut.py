"""A site whose network is away for a while costs a run that while, and little more.

From the root of the repository::

    python -m tests.chaos.cut --seconds 60

Three sites play three rounds: undisturbed, with the connection of one of them hung up
in the middle of its second update and refused until the network is back, and with one
that just goes silent there, as where a cable is pulled.  The exit code is 1 if a cut
costs more than 5 s beyond its length, or the final model differs by a bit.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

import flare_core as flare
from chaos.faults import Fault
from chaos.federation import SITES, Outcome, Patience, play
from chaos.report import LOOPS

_LOOP = LOOPS["numpy"]
_PLAN = flare.Plan(rounds=3, selection=flare.Selection(sites=len(SITES)))
_SITE = SITES[1]
"""One that does not send the initial weights, too."""
_AT = _LOOP.num_bytes * 3 // 2
_AS_DEPLOYED = Patience(server_s=60, site_s=3600)
"""What a server and a site have that are not told otherwise."""
_MOST_S = 5.0


def main() -> None:
    """Read the command line, and play."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cut")
    parser.add_argument("--seconds", type=float, default=60, help="of each cut")
    seconds = parser.parse_args().seconds
    console = Console(soft_wrap=True)
    alone = _played()
    console.print(f"undisturbed: {alone.seconds:.1f} s, blake3 {alone.blake3[:12]}")
    _print_said(console, alone)
    bad = bool(alone.problems)
    for how, silent in (("hung up", False), ("silent", True)):
        cut = Fault(kind="unplug", party=_SITE, at=_AT, seconds=seconds, silent=silent)
        outcome = _played(cut)
        wrong = wrongs(alone, outcome, seconds)
        bad |= bool(wrong)
        console.print(
            f"{how} for {seconds:g} s: {outcome.seconds:.1f} s, "
            f"{_beyond_s(alone, outcome, seconds):+.1f} s beyond the cut, "
            f"{'; '.join(wrong) or 'the same model'}"
        )
        _print_said(console, outcome)
    sys.exit(int(bad))


def wrongs(alone: Outcome, outcome: Outcome, seconds: float) -> list[str]:
    """Return what is not as it should be.

    Args:
        alone: How the run goes undisturbed.
        outcome: How it goes with a cut.
        seconds: How long the cut is.
    """
    again = [name for name, times in outcome.starts.items() if times > 1]
    found = {
        "ANOTHER MODEL": outcome.blake3 != alone.blake3,
        f"MORE THAN {_MOST_S:g} s": _beyond_s(alone, outcome, seconds) > _MOST_S,
        "the cut never came": outcome.seconds < seconds,
        f"started again: {', '.join(again)}": bool(again),
    }
    return [*outcome.problems, *(words for words, is_so in found.items() if is_so)]


def _print_said(console: Console, outcome: Outcome) -> None:
    for words in outcome.problems:
        console.print(words, markup=False)
    for name, said in outcome.said.items():
        console.print(f"--- {name}\n{said}", markup=False)


def _beyond_s(alone: Outcome, outcome: Outcome, seconds: float) -> float:
    return outcome.seconds - alone.seconds - seconds


def _played(*faults: Fault) -> Outcome:
    return play(_LOOP.command, _PLAN, faults, alone_s=0, patience=_AS_DEPLOYED)


if __name__ == "__main__":
    main()
