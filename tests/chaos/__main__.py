"""Federations to which things happen: each must end with the very same model.

From the root of the repository::

    python -m tests.chaos --runs 200 --seed 1
    python -m tests.chaos --runs 50 --seed 1 --faults 2
    python -m tests.chaos --runs 30 --seed 1 --loop lightning
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.report import LOOPS, run


def main() -> None:
    """Read the command line, and play."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1, help="in each run")
    parser.add_argument("--loop", default="numpy", choices=list(LOOPS))
    parser.add_argument("--topology", default="star", choices=["star", "swarm"])
    parser.add_argument("--only", type=int, help="play one of the runs only")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)  # noqa: S311 - to be had again
    code = run(
        arguments.loop,
        arguments.runs,
        arguments.faults,
        rng,
        topology=arguments.topology,
        only=arguments.only,
    )
    sys.exit(code)


main()
