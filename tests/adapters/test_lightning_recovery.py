"""A Lightning script that is killed, and started again, ends as if nothing had been."""

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

import flare_core as flare
from adapters.lightning_runs import Net, data, fit
from adapters.scripts import lightning_killed
from adapters.sites import proposed
from deployed import Deployment, deployment
from flare_adapters.lightning import FLCallback
from flare_core.management._unchanged import adapted

ROUNDS = 4
TIMEOUT_S = 200
Kill: TypeAlias = tuple[str, signal.Signals]
"""Where a script is held up, and what ends it there."""
EPOCHS, STEPS = flare.Schedule(every_n_epochs=1), flare.Schedule(every_n_steps=3)
FORKED = multiprocessing.get_context("forkserver")
"""Each start is a process of its own, but not another import of Lightning: 5 s."""
FORKED.set_forkserver_preload(["lightning.pytorch", "torchmetrics"])
pytestmark = [
    pytest.mark.timeout(300),  # processes that import a framework, one by one
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


def kill(name: str) -> Kill:
    return name, signal.SIGKILL


class Played:
    """A run of two sites: a script, and one beside it that answers at once.

    Args:
        schedule: Where rounds end.
        kills: Where the script is ended, one after the other.
        arguments: The script's.
        silent: Whether it says nothing of a federation.
        local: What the sites add to their training.
    """

    def __init__(
        self,
        schedule: flare.Schedule,
        kills: Iterable[Kill] = (),
        *arguments: str,
        silent: bool = False,
        local: flare.Local | None = None,
    ) -> None:
        with deployment() as deployed, ThreadPoolExecutor() as pool:
            for name in ("a", "b"):
                deployed.member(name)
            selection = flare.Selection(sites=2)
            plan = flare.Plan(
                rounds=ROUNDS,
                schedule=schedule,
                selection=selection,
                local=local or flare.Plain(),
            )
            deployed.create("run", plan)
            beside = pool.submit(_beside, deployed.site("b", "run"))
            self._play(deployed, kills, arguments, silent=silent)
            beside.result(TIMEOUT_S)
            self.blake3 = deployed.ended("run").blake3
            self.left = list((deployed.path / "a").glob("checkpoint-*"))

    def _play(
        self,
        deployed: Deployment,
        kills: Iterable[Kill],
        arguments: Iterable[str],
        *,
        silent: bool,
    ) -> None:
        folder = deployed.path / "script"
        folder.mkdir()
        site = os.environ | {"FLARE_SITE": str(deployed.site("a", "run"))}
        environment = dict(adapted(site)) if silent else site
        self.said: list[str] = []
        for name, signum in [*kills, ("", signal.SIGKILL)]:
            said = folder / "said"
            told = [[str(folder), *arguments], environment, said]
            script = FORKED.Process(target=lightning_killed.start, args=told)
            if name:
                _end_at(folder / name, script, signum)
            else:
                script.start()
                script.join(TIMEOUT_S)
                assert script.exitcode == 0, said.read_text()
            self.said.append(said.read_text())
        logs = sorted(folder.glob("log-*.jsonl"))
        self.logs = [[json.loads(one) for one in _lines(log)] for log in logs]
        self.end = json.loads((folder / "end.json").read_text())


def _end_at(pipe: Path, script: Any, signum: signal.Signals) -> None:
    """Start a script, and end it where it is held up, with all its ranks."""
    os.mkfifo(pipe)
    script.start()
    with pipe.open("w"):
        os.killpg(script.pid, signum)
        script.join(TIMEOUT_S)
        assert script.exitcode in {1, -signum}
    pipe.unlink()


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines()


def _beside(file: Path) -> None:
    """Take part, and find the same for each global model: all that it knows is that."""
    net = lightning_killed.Net(file)
    weights = {name: one.numpy() for name, one in net.state_dict().items()}
    link = flare.connect(flare.site(file))
    plan = link.plan()
    proposal = flare.Proposal(weights=proposed(weights, plan), schedule=plan.schedule)
    model = link.join(proposal)
    while not model.final:
        found = {name: one * np.float32(0.9) for name, one in model.weights.items()}
        update = flare.Update(
            site="b",
            round_number=model.round_number,
            weights=flare.ModelState(found, classes=model.weights.layout.classes),
            num_examples=7,
        )
        model = link.exchange(update)
    link.leave({})


def starts(logs: list[list[Any]], undisturbed: list[Any]) -> list[int]:
    """Return where in the log of an undisturbed script each of the others begins.

    Each must be a part of it, line by line: all losses and rates, at the same steps.
    """
    found = [undisturbed.index(log[0]) for log in logs]
    for begin, log in zip(found, logs, strict=True):
        assert undisturbed[begin : begin + len(log)] == log
    return found


def steps(logs: list[list[Any]]) -> list[int]:
    """Return the step that each of the logs begins with."""
    return [log[0][0] for log in logs]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture(scope="module")
def by_epochs(pool: ThreadPoolExecutor) -> Future[Played]:
    """What an undisturbed script plays, while the other one is killed."""
    return pool.submit(Played, EPOCHS, (), "--own-order")


def test_rounds_of_epochs_go_on(by_epochs: Future[Played]) -> None:
    kills = [
        kill("step-2"),  # there is no checkpoint yet
        kill("step-7"),  # while it trains round 1
        kill("saved-1"),  # before the update is handed in
        kill("validation-10"),  # right after the next model came in
        ("step-12", signal.SIGINT),
        kill("saved-3"),  # before the last one is handed in
    ]

    killed = Played(EPOCHS, kills, "--own-order")

    undisturbed = by_epochs.result(TIMEOUT_S)
    assert killed.blake3 == undisturbed.blake3
    assert killed.end == undisturbed.end
    assert steps(killed.logs) == [0, 0, 4, 9, 9, 9, 19]
    starts(killed.logs, undisturbed.logs[0])
    assert killed.left == []


def test_rounds_of_steps_go_on_in_the_middle_of_an_epoch(
    pool: ThreadPoolExecutor,
) -> None:
    undisturbed = pool.submit(Played, STEPS)
    kills = [kill("saved-1"), kill("step-7"), kill("saved-3")]

    killed = Played(STEPS, kills)

    assert killed.blake3 == undisturbed.result().blake3
    assert killed.end == undisturbed.result().end
    assert steps(killed.logs) == [0, 5, 5, 11]
    starts(killed.logs, undisturbed.result().logs[0])
    assert "last.ckpt') is not used" in killed.said[1]  # what the script resumes from


def test_what_scaffold_keeps_goes_on(pool: ThreadPoolExecutor) -> None:
    undisturbed = pool.submit(Played, STEPS, local=flare.Scaffold())
    kills = [kill("saved-1"), kill("step-7"), kill("saved-3")]

    killed = Played(STEPS, kills, local=flare.Scaffold())

    assert killed.blake3 == undisturbed.result().blake3
    assert killed.end == undisturbed.result().end


def test_a_script_that_says_nothing_goes_on(by_epochs: Future[Played]) -> None:
    arguments = ["--own-order", "--says", "nothing"]

    killed = Played(EPOCHS, [kill("step-12")], *arguments, silent=True)

    undisturbed = by_epochs.result(TIMEOUT_S)
    assert killed.blake3 == undisturbed.blake3
    assert killed.end == undisturbed.end
    assert steps(killed.logs) == [0, 9]
    starts(killed.logs, undisturbed.logs[0])


def test_the_ranks_of_a_lightning_strategy_go_on(pool: ThreadPoolExecutor) -> None:
    arguments = ["--says", "strategy", "--ranks", "2"]
    undisturbed = pool.submit(Played, STEPS, (), *arguments)

    killed = Played(STEPS, [kill("step-4")], *arguments)

    assert killed.blake3 == undisturbed.result().blake3
    assert killed.end == undisturbed.result().end


class Odd(Net):
    """Puts what is no plain data into its checkpoints."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["odd"] = Path()


class Fetches(Net):
    """Fetches its batches by itself."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


@pytest.mark.parametrize(
    ("net", "schedule", "why"),
    [
        (Odd, EPOCHS, r"puts pathlib\.\w+ into its checkpoints"),
        (Fetches, STEPS, "takes a dataloader_iter"),
    ],
)
def test_a_round_that_nobody_could_go_on_from_is_not_saved(
    net: type[Net],
    schedule: flare.Schedule,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with deployment() as deployed:
        deployed.member("a")
        deployed.create("run", flare.Plan(rounds=1, schedule=schedule))
        site = deployed.site("a", "run")

        fit(net(), DataLoader(data(), batch_size=4), FLCallback(site))

        assert deployed.ended("run").rounds == 1
    assert re.search(f"round 0 is not saved, .*{why}", caplog.text)


class Breaks(Callback):
    """Ends a fit in its second round."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            msg = "out of memory"
            raise RuntimeError(msg)


def test_a_rank_that_has_saved_nothing_is_told_so() -> None:
    with deployment() as deployed:
        deployed.member("a")
        deployed.create("run", flare.Plan(rounds=2, schedule=EPOCHS))
        site = deployed.site("a", "run")
        loader = DataLoader(data(), batch_size=4)
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(Net(), loader, Breaks(), FLCallback(site))
        (site.parent / "checkpoint-a-run/round/lightning-0.pt").unlink()

        with pytest.raises(flare.ConfigurationError, match="as many processes"):
            fit(Net(), loader, FLCallback(site))
