"""A site that trains with a bare Ignite engine, and can be held up for a test.

It draws numbers wherever a script does: for the order of its data, in a transform with
a generator of its own, in dropout.  All that it knows is noted in ``FOLDER/log.jsonl``.
It stops for good at the point that ``FOLDER/hold`` names.
    ignite_site.py FOLDER [deterministic]
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import DeterministicEngine, Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from ignite.metrics import Average, MeanSquaredError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flare_adapters.monai import FLHandler

FEATURES, NUM_ROWS, BATCH = 4, 22, 4


def net() -> nn.Module:
    """Return what is trained: all of it in float32."""
    torch.manual_seed(0)
    width = 8
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 1)
    )


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows with a noise that a generator of their own draws."""

    def __init__(self) -> None:
        self._features = torch.randn(
            NUM_ROWS, FEATURES, generator=torch.Generator().manual_seed(1)
        )
        self._noise = np.random.RandomState(2)

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self._features[index]
        noise = self._noise.normal(0, 0.1, FEATURES).astype(np.float32)
        return row + torch.from_numpy(noise), row.sum(0, keepdim=True)


def train(folder: Path, kind: type[Engine] = Engine, site: Path | None = None) -> None:
    """Train, and note what happens.

    Args:
        folder: For the notes and the checkpoints of the script's own.
        kind: Of the engine.
        site: The site file, if no variable names it.
    """
    network = net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3)
    torch.manual_seed(3)

    def step(engine: Engine, batch: Any) -> float:
        network.train()
        loss = nn.functional.mse_loss(network(batch[0]), batch[1])
        (loss / 4).backward()
        if engine.state.iteration % 4 == 0:  # so epochs end with half of a step
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    def validate(_: Engine, batch: Any) -> tuple[Tensor, Tensor]:
        network.eval()
        with torch.no_grad():
            return network(batch[0]), batch[1]

    trainer, evaluator = kind(step), Engine(validate)
    Average().attach(trainer, "average")
    MeanSquaredError().attach(evaluator, "mse")
    stopper = EarlyStopping(3, lambda one: -one.state.metrics["mse"], trainer)
    evaluator.add_event_handler(Events.COMPLETED, stopper)
    FLHandler(site, network=network, optimizer=optimizer, evaluator=evaluator).attach(
        trainer
    )
    saver = DiskSaver(str(folder / "models"), require_empty=False)
    keeps = Checkpoint({"model": network}, saver, n_saved=2)

    def note(**facts: Any) -> None:
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(facts) + "\n")

    def pause(point: str) -> None:
        hold = folder / "hold"
        if hold.exists() and hold.read_text() == point:
            sys.stdout.write("holds\n")
            sys.stdout.flush()
            sys.stdin.read()

    @trainer.on(Events.ITERATION_COMPLETED)
    def after_iteration(engine: Engine) -> None:
        state = engine.state
        rate = optimizer.param_groups[0]["lr"]
        if state.iteration % 4 == 0:
            warm_up.step()
        note(iteration=state.iteration, epoch=state.epoch, loss=state.output, lr=rate)
        pause(f"iteration-{state.iteration}")

    @trainer.on(Events.EPOCH_COMPLETED)
    def after_epoch(engine: Engine) -> None:
        evaluator.run(DataLoader(Rows(), batch_size=BATCH, shuffle=True))
        scheduler.step()
        pause(f"epoch-{engine.state.epoch}")
        note(
            done=engine.state.epoch,
            average=engine.state.metrics["average"],
            mse=evaluator.state.metrics["mse"],
            patience=stopper.counter,
        )

    trainer.add_event_handler(Events.EPOCH_COMPLETED, keeps)

    def opened(event: str, given: Any) -> None:
        """Stop where a round is saved, and nothing of it has left."""
        if event == "open" and Path(str(given[0])).name.startswith("checkpoint-"):
            pause(f"saved-{trainer.state.iteration}")

    sys.addaudithook(opened)
    loader = DataLoader(Rows(), batch_size=BATCH, shuffle=True)
    trainer.run(loader, max_epochs=1)
    note(end=[trainer.state.epoch, trainer.state.iteration, stopper.best_score])


if __name__ == "__main__":
    deterministic = sys.argv[2:] == ["deterministic"]
    train(Path(sys.argv[1]), DeterministicEngine if deterministic else Engine)
