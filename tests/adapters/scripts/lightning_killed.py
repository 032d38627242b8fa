"""A site's script for Lightning, which tests kill and start again.

It says nothing of that: what it holds up, it holds up for the test, at a pipe that the
test has made beside it, and what it logs goes to a file of this process.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

FEATURES = 4
NUM_ROWS, BATCH = 20, 4


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """A linear problem, augmented."""

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = torch.arange(FEATURES).add(index).sin()
        return features + 0.1 * torch.randn(FEATURES), features.sum().reshape(1)


class Net(L.LightningModule):
    """Dropout, Adam, a schedule by steps and one that waits for a metric."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.save_hyperparameters()  # a path: no plain data
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
        )
        self.mean = MeanMetric()

    def loss(self, batch: Any) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.net(features), target)

    def training_step(self, batch: Any) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.mean.update(loss)
        self.log("mean_loss", self.mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        by_steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, steps)
        return [optimizer], [{"scheduler": by_steps, "interval": "step"}]


class Log(Logger):
    """A line of JSON for all that Lightning logs."""

    name = version = "log"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""


class Holds(Callback):
    """Waits at each batch and each validation, where the test wants it to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sys.addaudithook(self._audit)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._hold(f"step-{trainer.global_step}")

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._hold(f"validation-{trainer.global_step}")

    def _hold(self, name: str) -> None:
        path = self._folder / name
        if path.exists():
            with path.open() as pipe:
                pipe.read()

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Notice that a round checkpoint is in place: its folder goes to the disk."""
        if event == "open" and Path(str(args[0])).name.startswith("checkpoint-"):
            kept = json.loads((Path(args[0]) / "round" / "round.json").read_text())
            self._hold(f"saved-{kept['round_number']}")


def loader(*, own: bool) -> DataLoader[Any]:
    """Batches, in an order from a generator of their own, or by a process beside."""
    generator = torch.Generator().manual_seed(3) if own else None
    workers = 0 if own else 1
    return DataLoader(
        Rows(), BATCH, shuffle=True, generator=generator, num_workers=workers
    )


def digest(net: nn.Module) -> str:
    """The hash of all weights."""
    found = hashlib.blake2b()
    for value in net.state_dict().values():
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    """Train, and say at the end how all that counts stands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--says", default="callback")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--own-order", action="store_true")
    args = parser.parse_args()
    number = len(list(args.folder.glob("log-*"))) if args.ranks == 1 else 0
    log = args.folder / f"log-{number}.jsonl"
    log.touch()
    best = ModelCheckpoint(
        args.folder / "own", monitor="train_loss", save_top_k=2, save_last=True
    )
    stops = EarlyStopping("val_loss", patience=100)
    callbacks = [LearningRateMonitor("step"), stops, Holds(args.folder), best]
    strategy = "ddp" if args.ranks > 1 else "auto"
    if args.says == "callback":
        from flare_adapters.lightning import FLCallback  # noqa: PLC0415 - if wanted

        callbacks.append(FLCallback())
    elif args.says == "strategy":
        from flare_adapters.lightning import FLStrategy  # noqa: PLC0415 - if wanted

        strategy = FLStrategy("ddp")
    L.seed_everything(7)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=args.ranks,
        strategy=strategy,
        max_epochs=2,
        callbacks=callbacks,
        logger=Log(log),
        log_every_n_steps=1,
        enable_model_summary=False,
    )
    net = Net(args.folder)
    train = loader(own=args.own_order)
    trainer.fit(net, train, DataLoader(Rows(), BATCH), ckpt_path="last")
    ends = {
        "weights": digest(net),
        "moments": [
            {name: value.tolist() for name, value in state.items()}
            for state in trainer.optimizers[0].state.values()
        ],
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "best": sorted(float(score) for score in best.best_k_models.values()),
        "stops": [float(stops.best_score), stops.wait_count],
    }
    if trainer.is_global_zero:
        (args.folder / "end.json").write_text(json.dumps(ends))
    if args.ranks > 1:
        os._exit(0)  # else gloo may abort it, see ranks.py


def start(arguments: list[str], environment: dict[str, str], said: Path) -> None:
    """Run as a command in this process, which was forked to that end.

    Args:
        arguments: Those of the command; the first one is its working folder.
        environment: Its variables.
        said: Where it puts what it says.
    """
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as a command has it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(arguments[0])
    sys.argv = [__file__, *arguments]
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main()


if __name__ == "__main__":
    main()
