"""An Ignite script of a site, with dropout, Adam and a schedule over all rounds."""

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flare_core as flare
from flare_adapters.monai import FLHandler


def main() -> None:
    """Train."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(8, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    generator = torch.Generator().manual_seed(ord(flare.site().name[0]))
    features = torch.randn(60, 8, generator=generator)
    data = TensorDataset(features, features.sum(1, keepdim=True))

    def step(_: Engine, batch: Any) -> float:
        network.train()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return float(loss)

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: schedule.step())
    FLHandler(network=network, optimizer=optimizer).attach(engine)
    engine.run(DataLoader(data, batch_size=10, shuffle=True), max_epochs=1)


main()
