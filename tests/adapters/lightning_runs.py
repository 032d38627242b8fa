"""Models, data and fits for the tests of the Lightning adapter."""

from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adapters.scripts.lightning_site import trainer

FEATURES = 4


class Net(L.LightningModule):
    """Dropout, BatchNorm, Adam and a schedule as long as the fit says."""

    def __init__(self, *, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.Tanh()
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 1))
        self.rates: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.head(self.body(features)), target)

    def training_step(self, batch: Any) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch))

    def on_train_batch_end(self, *_: Any) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(
            [one for one in self.parameters() if one.requires_grad], lr=0.01
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Linear(L.LightningModule):
    """One layer and plain SGD: what a step does can be told by hand."""

    def __init__(self, *, value: float = 0.0, rate: float = 0.1) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 1)
        self.rate = rate
        nn.init.constant_(self.layer.weight, value)
        nn.init.constant_(self.layer.bias, value)

    def training_step(self, batch: Any) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.layer(features), target)

    def validation_step(self, batch: Any) -> None:
        self.log("val_weight", self.layer.weight.sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Log(Logger):
    """Keeps what Lightning logs."""

    name = version = "log"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""


def data(seed: int = 0, num: int = 22) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, FEATURES, generator=generator)
    return TensorDataset(features, features.sum(1, keepdim=True) + seed)


def whole(rows: TensorDataset) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=len(rows))


def fit(
    net: L.LightningModule,
    loader: DataLoader[Any],
    *callbacks: Callback,
    **settings: Any,
) -> L.Trainer:
    run = trainer(callbacks=list(callbacks), **({"max_epochs": 1} | settings))
    run.fit(net, loader, loader)
    return run


def frozen(seed: int = 0) -> Net:
    net = Net(seed=seed)
    net.body.requires_grad_(requires_grad=False)
    return net
