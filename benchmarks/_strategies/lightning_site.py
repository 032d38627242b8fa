"""A hospital of `examples/lightning_heart.py`, with plain SGD.

Its arguments are a seed, the folder of the examples, and a number of rounds.
"""

import sys

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import flare_core
from flare_adapters.lightning import FLCallback

seed, examples, rounds = sys.argv[1:]
sys.path.insert(0, examples)
from lightning_heart import HeartModel, load  # noqa: E402 - it is found by now

EPOCHS = 3  # of a hospital's own data, so 9 to 21 steps


class Model(HeartModel):
    """The example's network, trained by gradients and nothing else."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD at a constant rate."""
        return torch.optim.SGD(self.parameters(), 0.05)


site = flare_core.site()
pl.seed_everything(int(seed), verbose=False)
train, test = load(site.index, site.count)
trainer = pl.Trainer(
    max_epochs=EPOCHS * int(rounds),
    callbacks=[FLCallback(every_n_epochs=EPOCHS)],
    check_val_every_n_epoch=EPOCHS,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(
    Model(),
    DataLoader(train, batch_size=32, shuffle=True),
    DataLoader(test, batch_size=512),
)
