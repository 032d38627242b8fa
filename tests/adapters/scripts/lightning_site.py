"""A site of a Lightning federation as a program, for tests that need processes.

Two sites hold rows of one linear problem; each takes one full-batch step a round, so
that the federation equals centralised gradient descent.
"""

import argparse
import os
from pathlib import Path

import lightning as L  # noqa: N812 - as its users write it
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.utils.data import DataLoader, TensorDataset

from flare_adapters.lightning import FLCallback, FLStrategy

FEATURES = 4
ROWS = (24, 40)
LEARNING_RATE = 0.1


class Net(L.LightningModule):
    """Two layers and a squared error."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.net(features), target)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def rows(index: int) -> TensorDataset:
    """The data of one site."""
    generator = torch.Generator().manual_seed(100 + index)
    features = torch.randn(ROWS[index], FEATURES, generator=generator)
    return TensorDataset(features, features.sum(1, keepdim=True) + index)


def trainer(**settings: object) -> L.Trainer:
    """A quiet trainer on the CPU."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(quiet | settings))


def main() -> None:
    """Train one site; the first one on two ranks if a Lightning strategy says so."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--site", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--strategy", default="single_device")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    name = args.strategy.removeprefix("FL:")
    ranks = 1 if name == "single_device" else 2
    strategy = SingleDeviceStrategy("cpu") if name == "single_device" else name
    if args.strategy.startswith("FL:"):
        federated = {"strategy": FLStrategy(strategy, site=args.site)}
    else:
        federated = {"strategy": strategy, "callbacks": [FLCallback(args.site)]}
    data = rows(args.index)
    loader = DataLoader(data, batch_size=len(data) // ranks)
    net = Net(seed=args.index)
    trained = trainer(max_epochs=1, devices=ranks, **federated)
    trained.fit(net, loader, loader)
    if trained.global_rank == 0:
        torch.save(net.state_dict(), args.out)
    if ranks > 1:
        assert len(distributed_c10d._world.pg_map) <= 1  # the engine's; ours is ended
        os._exit(0)  # else gloo may abort it, see ranks.py


if __name__ == "__main__":
    main()
