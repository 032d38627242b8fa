"""A site that trains with a bare Ignite engine, and can be held up for a test.

It draws numbers wherever a script does: for the order of its data, in a transform with
a generator of its own, in dropout.  All that it knows is noted in ``FOLDER/log.jsonl``.
It stops for good at the point that ``FOLDER/hold`` names.
    ignite_site.py FOLDER
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from ignite.metrics import Average, MeanSquaredError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LinearLR
from torch.utils.data import DataLoader, Dataset

from flare_adapters.monai import FLHandler

FEATURES, WIDTH, NUM_ROWS, BATCH = 4, 8, 22, 4
ACCUMULATED = 4
"""Batches to a step: an epoch has 6, and ends with half of one."""


def net() -> nn.Module:
    """Return what is trained: all of it in float32."""
    torch.manual_seed(0)
    first, last = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 1)
    return nn.Sequential(first, nn.Tanh(), nn.Dropout(0.2), last)


@final
class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows with a noise that a generator of their own draws.

    Args:
        noise: How much.
    """

    def __init__(self, noise: float) -> None:
        self._scale = noise
        generator = torch.Generator().manual_seed(1)
        self._features = torch.randn(NUM_ROWS, FEATURES, generator=generator)
        self._noise = np.random.RandomState(2)

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self._features[index]
        noise = self._noise.normal(0, self._scale, FEATURES).astype(np.float32)
        return row + torch.from_numpy(noise), row.sum(0, keepdim=True)


@final
class Notes:
    """What happens, for a test that reads it, and the place where it holds the script.

    Args:
        folder: For the file.
    """

    def __init__(self, folder: Path) -> None:
        self._log, self._hold = folder / "log.jsonl", folder / "hold"

    def write(self, **facts: Any) -> None:
        """Write a line."""
        with self._log.open("a") as log:
            log.write(json.dumps(facts) + "\n")

    def pause(self, point: str) -> None:
        """Stop for good if that is the point."""
        if self._hold.exists() and self._hold.read_text() == point:
            sys.stdout.write("holds\n")
            sys.stdout.flush()
            sys.stdin.read()


def rows(noise: float = 0.1, **loading: Any) -> DataLoader[Any]:
    """Return what a site trains or validates with."""
    return DataLoader(Rows(noise), batch_size=BATCH, shuffle=True, **loading)


def trainer_of(kind: type[Engine], network: nn.Module, optimizer: Optimizer) -> Engine:
    """Return an engine that accumulates gradients."""

    def step(engine: Engine, batch: Any) -> float:
        network.train()
        loss = nn.functional.mse_loss(network(batch[0]), batch[1])
        (loss / ACCUMULATED).backward()
        if engine.state.iteration % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return kind(step)


def evaluator_of(network: nn.Module) -> Engine:
    """Return an engine that validates."""

    def step(_: Engine, batch: Any) -> tuple[Tensor, Tensor]:
        network.eval()
        with torch.no_grad():
            return network(batch[0]), batch[1]

    return Engine(step)


def train(
    folder: Path,
    *,
    site: Path | None = None,
    kind: type[Engine] = Engine,
    data: Callable[[], Any] = rows,
    epoch_length: int | None = None,
    prepare: Callable[[Engine], object] = lambda _: None,
) -> None:
    """Train, and note what happens.

    Args:
        folder: For the notes and the checkpoints of the script's own.
        site: The site file, if no variable names it.
        kind: Of the engine.
        data: Makes what is trained with.
        epoch_length: Batches in an epoch, if these are not all.
        prepare: Attaches more to the engine, in the end.
    """
    notes, network = Notes(folder), net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    decay = ExponentialLR(optimizer, 0.8)
    warm_up = LinearLR(optimizer, 0.5, total_iters=3)
    torch.manual_seed(3)
    validation = rows()
    trainer, evaluator = trainer_of(kind, network, optimizer), evaluator_of(network)

    Average().attach(trainer, "average")
    MeanSquaredError().attach(evaluator, "mse")
    stopper = EarlyStopping(9, lambda one: -one.state.metrics["mse"], trainer)
    evaluator.add_event_handler(Events.COMPLETED, stopper)
    handler = FLHandler(site, network=network, optimizer=optimizer, evaluator=evaluator)
    handler.attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED)
    def after_iteration(engine: Engine) -> None:
        state, rate = engine.state, optimizer.param_groups[0]["lr"]
        if state.iteration % ACCUMULATED == 0:
            warm_up.step()
        notes.write(
            iteration=state.iteration, epoch=state.epoch, loss=state.output, lr=rate
        )
        notes.pause(f"iteration-{state.iteration}")

    @trainer.on(Events.EPOCH_COMPLETED)
    def after_epoch(engine: Engine) -> None:
        evaluator.run(validation)
        decay.step()
        notes.pause(f"epoch-{engine.state.epoch}")
        metrics = {**engine.state.metrics, **evaluator.state.metrics}
        notes.write(done=engine.state.epoch, patience=stopper.counter, **metrics)

    saver = DiskSaver(str(folder / "models"), require_empty=False)
    last_two = Checkpoint({"model": network}, saver, n_saved=2)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, last_two)

    prepare(trainer)
    trainer.run(data(), max_epochs=1, epoch_length=epoch_length)
    notes.write(ends=[trainer.state.epoch, trainer.state.iteration, stopper.best_score])


def hold_when_saved(folder: Path) -> Callable[[Engine], None]:
    """Return what has the script hold where nothing of a saved round has left."""

    def prepare(engine: Engine) -> None:
        def opened(event: str, given: Any) -> None:
            if event == "open" and Path(str(given[0])).name.startswith("checkpoint-"):
                Notes(folder).pause(f"saved-{engine.state.iteration}")

        sys.addaudithook(opened)

    return prepare


if __name__ == "__main__":
    home = Path(sys.argv[1])
    train(home, prepare=hold_when_saved(home))
