"""Three federations on real data, one per framework, and what each was worth.

Types for you what is printed after each `$`: it runs the three examples beside this
file, each as a federation, then every site alone, then all data in one place.  All
train for the same steps.  About three minutes on two idle cores.

    pip install --no-deps -r examples/requirements.txt
    python examples/quickstart.py                   # all three
    python examples/quickstart.py lightning_heart   # or some
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Example:
    """A script of this folder, how to run it and what to look at."""

    script: str
    framework: str
    sites: int
    rounds: int
    metric: str
    score: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The three scores of an example, higher is better."""

    example: Example
    local_only: float
    federated: float
    centralised: float
    seconds: float

    @property
    def worth_it(self) -> bool:
        """Whether the federation beat the sites on their own."""
        return self.federated > self.local_only


EXAMPLES = (
    Example(
        script="lightning_heart",
        framework="Lightning",
        sites=4,
        rounds=10,
        metric="val_acc",
        score="accuracy",
    ),
    Example(
        script="huggingface_sentiment",
        framework="Hugging Face",
        sites=4,
        rounds=4,
        metric="eval_accuracy",
        score="accuracy",
    ),
    Example(
        script="monai_brain",
        framework="MONAI",
        sites=3,
        rounds=10,
        metric="val_mean_dice",
        score="mean Dice",
    ),
)


def play(example: Example, folder: Path, console: Console) -> Outcome:
    """Run an example through the command line, as a user would, and read its scores."""
    script = Path(__file__).parent / f"{example.script}.py"
    run_dir = folder / example.script
    options = f"--sites {example.sites} --rounds {example.rounds} --baselines"
    arguments = ["simulate", str(script), *options.split(), "--run-dir", str(run_dir)]
    console.rule(f"[bold]{example.framework}")
    console.print(f"$ flare {shlex.join(arguments)}", style="bold", soft_wrap=True)
    command = [sys.executable, "-m", "flare_core.management.cli", *arguments]
    subprocess.run(command, check=True)
    scores = json.loads((run_dir / "scores.json").read_text())
    return Outcome(
        example=example,
        seconds=sum(scores["seconds"].values()),
        **scores["metrics"][example.metric],
    )


def table(outcomes: list[Outcome]) -> Table:
    """Return one row per framework."""
    shown = Table("framework", "score", title="What federation was worth")
    shown.box = SIMPLE_HEAD  # fits into 80 columns
    for column in ("local-only", "federated", "centralised", "seconds"):
        style = "bold" if column == "federated" else ""
        shown.add_column(column, justify="right", style=style)
    for outcome in outcomes:
        scores = (outcome.local_only, outcome.federated, outcome.centralised)
        shown.add_row(
            outcome.example.framework,
            outcome.example.score,
            *(f"{score:.3f}" for score in scores),
            f"{outcome.seconds:.0f}",
        )
    return shown


def main() -> None:
    """Play the examples; fail if a federation was not worth it."""
    names = [example.script for example in EXAMPLES]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="EXAMPLE", help=", ".join(names))
    chosen = parser.parse_args().names or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no example called {', '.join(sorted(unknown))}")
    console = Console()
    folder = Path("runs") / f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}"
    outcomes = [
        play(example, folder, console)
        for example in EXAMPLES
        if example.script in chosen
    ]
    console.rule()
    console.print(table(outcomes))
    console.print(
        "local-only is the mean of the sites' own models; all three are scored"
    )
    console.print("on the same test data and trained for the same number of steps")
    console.print(f"models, records and logs: {folder}", soft_wrap=True)
    for outcome in outcomes:
        if not outcome.worth_it:
            sys.exit(f"{outcome.example.script}: federated did not beat local-only")


if __name__ == "__main__":
    main()
