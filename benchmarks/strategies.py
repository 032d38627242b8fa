"""All strategies on the data of the examples, where the sites' data differ much.

    python benchmarks/strategies.py --json strategies.json
    python benchmarks/strategies.py --quick

Three federations, one of each framework, each with the network and the data of its
example, split hard: a site is a hospital, a plane of slices or a kind of text, and the
largest has two to five times as much as the smallest.  All train a fixed number of
epochs a round, so the larger take more steps.

heart (Lightning)
    4 hospitals of `examples/lightning_heart.py`, 123 to 303 patients, 3 epochs a round,
    SGD; the score is the loss on all test patients.
brain (MONAI)
    3 hospitals of `examples/monai_brain.py`, each another plane and scanner, 2 epochs a
    round, SGD; the score is the mean Dice on test slices of all.
texts (Hugging Face)
    4 sites of `examples/huggingface_sentiment.py`, 24 to 120 texts of one kind each,
    LoRA, an epoch a round, AdamW: under plain SGD nothing is learnt in as many rounds,
    and so SCAFFOLD, which is made for SGD, is left out; the score is the loss on test
    texts of all.

For each strategy: the score of the final model, the first global model that reaches the
target (`rounds` counts from 1, and is one more than were played where none did), and
the bytes that all sites sent and got.  q-FedAvg weighs by a loss, and the brain script
reports none of the global model.  The settings that a strategy needs were looked
for in powers of about three on the heart data, with a seed that is not among those
here, and are the same for all three.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import typer
from _report import JsonFile, Quick, Report
from _simulated import simulate

_HERE = Path(__file__).resolve().parent
_EXAMPLES = _HERE.parent / "examples"


@final
@dataclass(frozen=True, slots=True)
class Task:
    """A federation to be played.

    Attributes:
        script: What its sites run.
        sites: How many there are.
        rounds: How many are played.
        seeds: How many times.
        metric: The score.
        lower: Whether a lower one is better.
        target: The score that is to be reached.
        without: Strategies that make no sense there.
    """

    script: str
    sites: int
    rounds: int
    seeds: int
    metric: str
    lower: bool
    target: float
    without: tuple[str, ...] = ()


_TASKS = {
    "heart": Task("lightning_site.py", 4, 12, 5, "val_loss", True, 0.42),
    "brain": Task(
        *("monai_site.py", 3, 10, 3, "val_mean_dice", False, 0.55),
        without=("q-FedAvg",),
    ),
    "texts": Task(
        *("huggingface_site.py", 4, 5, 2, "eval_loss", True, 0.5),
        without=("SCAFFOLD", "FedDyn"),
    ),
}


def _strategy(name: str, **settings: object) -> list[str]:
    chosen = [f"strategy.settings.{key}={value}" for key, value in settings.items()]
    return [f"strategy.name={name}", *chosen]


_STRATEGIES = {
    "FedAvg": [],
    "FedAvgM": _strategy("fedavgm"),
    "FedAdam": _strategy("fedadam", learning_rate=0.01),
    "FedYogi": _strategy("fedyogi", learning_rate=0.01),
    "FedAdagrad": _strategy("fedadagrad", learning_rate=0.03),
    "DiLoCo's outer step": _strategy("diloco"),
    "FedNova": _strategy("fednova"),
    "q-FedAvg": _strategy("qfedavg", learning_rate=0.05, metric="METRIC", from_round=1),
    "FedProx": ["local.name=fedprox", "local.mu=0.1"],
    "SCAFFOLD": ["local.name=scaffold"],
    "FedDyn": ["local.name=feddyn", "local.alpha=1"],
    "median": ["aggregation.name=median"],
    "geometric median": ["aggregation.name=geometric_median"],
    "cyclic": ["topology.name=cyclic"],
    "asynchronous": ["topology.name=async", "topology.buffer=2"],
}
_QUICK = ("FedAvg", "FedNova")


@final
@dataclass(frozen=True, slots=True)
class Played:
    """What came of a run.

    Attributes:
        score: Of the final model.
        rounds: Until the target.
        num_bytes: Sent and got by all sites.
    """

    score: float
    rounds: int
    num_bytes: int


def main(json_file: JsonFile = None, *, quick: Quick = False) -> None:
    """Print what came of each strategy."""
    report = Report("strategies")
    tasks = {"heart": _TASKS["heart"]} if quick else _TASKS
    for name, task in tasks.items():
        for strategy in _QUICK if quick else _STRATEGIES:
            if strategy in task.without:
                continue
            runs = [_play(task, strategy, seed) for seed in range(task.seeds)]
            case = f"{name}, {strategy}"
            report.add(f"{case}: {task.metric}", "", [one.score for one in runs])
            target = f"{case}: to {task.metric} {task.target:g}"
            report.add(target, "rounds", [one.rounds for one in runs])
            report.add(f"{case}: bytes", "MB", [one.num_bytes / 1e6 for one in runs])
    report.finish(json_file)


def _play(task: Task, strategy: str, seed: int) -> Played:
    settings = [one.replace("METRIC", task.metric) for one in _STRATEGIES[strategy]]
    # in turn, each round is of one site only
    rounds = task.rounds * (task.sites if strategy == "cyclic" else 1)
    run = simulate(
        _HERE / "_strategies" / task.script,
        *(seed, _EXAMPLES, task.rounds),
        sites=task.sites,
        rounds=rounds,
        settings=settings,
    )
    scores = [one.global_metrics.get(task.metric) for one in run.records]
    scores.append(run.result.metrics[task.metric])
    reached = (n for n, score in enumerate(scores) if _reaches(task, score))
    return Played(
        score=run.result.metrics[task.metric],
        rounds=next(reached, len(scores)),
        num_bytes=sum(one.bytes_up + one.bytes_down for one in run.records),
    )


def _reaches(task: Task, score: float | None) -> bool:
    if score is None:
        return False
    return score <= task.target if task.lower else score >= task.target


if __name__ == "__main__":
    typer.run(main)
