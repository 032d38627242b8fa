"""Small runs of Ignite engines, and what a server saw of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from flare_adapters.monai import FLHandler
from flare_core import ModelState

FEATURES = 4
RATE = 0.1


def net(seed: int = 0, *, width: int = 8, frozen: bool = False) -> nn.Sequential:
    """Return a network with dropout and BatchNorm; perhaps with a frozen base."""
    torch.manual_seed(seed)
    base = nn.Linear(FEATURES, width).requires_grad_(not frozen)
    return nn.Sequential(
        base, nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 1)
    )


def linear(value: float = 0.0) -> nn.Linear:
    """Return one layer: what a step does can be told by hand."""
    layer = nn.Linear(FEATURES, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def rows(seed: int = 0, num: int = 22) -> TensorDataset:
    """Return the data of a site."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, FEATURES, generator=generator)
    return TensorDataset(features, features.sum(1, keepdim=True) + seed)


def whole(data: TensorDataset) -> DataLoader[Any]:
    """Return all rows as one batch."""
    return DataLoader(data, batch_size=len(data))


def sgd(network: nn.Module, rate: float = RATE) -> Optimizer:
    """Return plain SGD on what is trained."""
    return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], rate)


def loss_on(network: nn.Module, batch: Any) -> Tensor:
    """Return the mean squared error."""
    return nn.functional.mse_loss(network(batch[0]), batch[1])


def engine(network: nn.Module, optimizer: Optimizer, *, accumulate: int = 1) -> Engine:
    """Return an engine that trains, as a user of bare Ignite writes it."""

    def step(engine: Engine, batch: Any) -> dict[str, Tensor]:
        network.train()
        loss = loss_on(network, batch)
        (loss / accumulate).backward()
        if engine.state.iteration % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss.detach()}

    return Engine(step)


def evaluator(network: nn.Module) -> Engine:
    """Return an engine whose metric ``error`` tells which weights it saw."""
    errors: list[float] = []

    def step(_: Engine, batch: Any) -> float:
        network.eval()
        with torch.no_grad():
            return float(loss_on(network, batch))

    found = Engine(step)
    found.add_event_handler(Events.STARTED, errors.clear)
    found.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: errors.append(engine.state.output)
    )

    @found.on(Events.EPOCH_COMPLETED)
    def note(engine: Engine) -> None:
        engine.state.metrics["error"] = sum(errors) / len(errors)
        engine.state.metrics["errors"] = list(errors)  # no scalar: stays here

    return found


def play(
    network: nn.Module,
    loader: Any,
    file: Path | None,
    *,
    epochs: int = 1,
    optimizer: Optimizer | None = None,
    prepare: Callable[[Engine], object] = lambda _: None,
    accumulate: int = 1,
    **options: Any,
) -> Engine:
    """Train, with the handler if there is a site file, and return the engine."""
    optimizer = optimizer or sgd(network)
    trainer = engine(network, optimizer, accumulate=accumulate)
    prepare(trainer)
    if file is not None:
        handler = FLHandler(file, network=network, optimizer=optimizer, **options)
        handler.attach(trainer)
    trainer.run(loader, max_epochs=epochs)
    return trainer


def furthest(found: ModelState, expected: nn.Module) -> float:
    """Return the largest difference of a global model from a module."""
    state = expected.state_dict()
    assert found.keys() == state.keys()
    differences = [
        (torch.from_numpy(found[name].copy()) - state[name]).abs().max()
        for name in state
    ]
    return float(max(differences))
