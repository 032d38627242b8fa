"""A Lightning script of a site, with dropout, Adam and a schedule over all rounds."""

from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flare_core as flare
from flare_adapters.lightning import FLCallback


class Net(L.LightningModule):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 1)
        )

    def training_step(self, batch: Any) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.net(features), target)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main() -> None:
    """Train."""
    L.seed_everything(len(flare.site().name))
    generator = torch.Generator().manual_seed(ord(flare.site().name[0]))
    features = torch.randn(60, 8, generator=generator)
    data = TensorDataset(features, features.sum(1, keepdim=True))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[FLCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader(data, batch_size=10, shuffle=True))


main()
