"""A hospital of `examples/monai_brain.py`, with plain SGD.

Its arguments are a seed, the folder of the examples, and a number of rounds.
"""

import sys

import torch
from monai.data import DataLoader, Dataset, set_track_meta
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted
from monai.utils import set_determinism

import flare_core
from flare_adapters.monai import FLHandler

seed, examples, rounds = sys.argv[1:]
sys.path.insert(0, examples)
from monai_brain import load, tissue_network  # noqa: E402 - it is found by now

SHARES = (1.0, 0.6, 0.3)  # of its slices that a hospital has
site = flare_core.site()
set_determinism(seed=int(seed))
set_track_meta(False)
train, test = load(site.index, site.count)
train = train[: int(len(train) * SHARES[site.index])]
network = tissue_network()
evaluator = SupervisedEvaluator(
    device=torch.device("cpu"),
    val_data_loader=DataLoader(Dataset(test[::2]), batch_size=16),
    network=network,
    postprocessing=AsDiscreted(("pred", "label"), argmax=(True, False), to_onehot=3),
    key_val_metric={
        "val_mean_dice": MeanDice(
            include_background=False, output_transform=from_engine(["pred", "label"])
        )
    },
)
trainer = SupervisedTrainer(
    device=torch.device("cpu"),
    max_epochs=2 * int(rounds),
    train_data_loader=DataLoader(Dataset(train), batch_size=8, shuffle=True),
    network=network,
    optimizer=torch.optim.SGD(network.parameters(), 0.1),
    loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
    train_handlers=[
        FLHandler(evaluator=evaluator, every_n_epochs=2),
        ValidationHandler(interval=2, validator=evaluator),
    ],
)
trainer.run()
