"""What Lightning trains on a GPU, and a site there that may have its own process.

Two sites in one process share torch's default type, which "bf16-true" sets whenever it
computes: one may restore what the other had set, for good.
"""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L  # noqa: N812 - as its users write it
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from adapters.gpu import digest, places
from adapters.lightning_runs import Net, data
from adapters.scripts.lightning_site import trainer
from flare_adapters.lightning import FLCallback

ON_GPU = {"accelerator": "gpu", "devices": 1}


class Watch(Callback):
    """Notes where the weights are in each epoch, and which they are in the end."""

    def __init__(self) -> None:
        self.places: list[set[tuple[str, int]]] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, net: Any) -> None:
        self.places.append(places(net))

    def on_train_end(self, trainer: L.Trainer, net: Any) -> None:
        self.places.append(places(net))
        self.weights = {n: one.detach().cpu() for n, one in net.state_dict().items()}


class Left(NamedTuple):
    """What a site has left: where its weights were, and a hash of them, by name."""

    places: list[set[tuple[str, int]]]
    weights: str


def precision(name: str) -> dict[str, Any]:
    """Return what sets it; float16 has a scale that changes all the time."""
    if name != "16-mixed":
        return {"precision": name}
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**20, growth_interval=2)
    return {"plugins": MixedPrecision("16-mixed", "cuda", scaler)}


def play(file: Path, number: int, name: str) -> Left:
    """Train as a site, with data and numbers of its own."""
    torch.use_deterministic_algorithms(mode=True)
    L.seed_everything(number, verbose=False)
    net, watch = Net(seed=number), Watch()
    run = trainer(
        max_epochs=1, callbacks=[FLCallback(file), watch], **ON_GPU, **precision(name)
    )
    run.fit(net, DataLoader(data(number, 24), batch_size=8, shuffle=True))
    weights = digest(watch.weights[one] for one in sorted(watch.weights))
    return Left(watch.places, weights)
