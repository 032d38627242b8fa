"""SCAFFOLD inside the run of an Ignite engine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from adapters.ignite_runs import FEATURES, loss_on
from adapters.quadratics import OPTIMUM, STEPS, Quadratic, plan, play, sgd
from adapters.sites import played
from flare_adapters.monai import FLHandler
from flare_core import Local, Plain, Plan, Scaffold, Schedule
from support import RunServer, SiteFile


def test_scaffold_ends_at_the_optimum_of_all(pair: Any) -> None:
    server, files = pair(plan(Scaffold()))
    network = Quadratic(0)
    optimizer = sgd(network)

    def step(_: Engine, batch: Any) -> None:
        del batch
        optimizer.zero_grad()
        network().backward()
        optimizer.step()

    engine = Engine(step)
    FLHandler(files[0], network=network, optimizer=optimizer).attach(engine)

    *_, last = played(
        server, lambda: engine.run(torch.zeros(2 * STEPS)), lambda: play(files[1], 1)
    )

    assert last["weight"][0] == pytest.approx(OPTIMUM, abs=1e-9)
    assert network.weight.item() == last["weight"][0]


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_mixed_precision_skips_is_none(
    run_server: RunServer, site_file: SiteFile, *, fused: bool
) -> None:
    server = run_server(Plan(rounds=1, local=Scaffold()))
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step(_: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        loss = 3 * network.weight.sum() * (float("inf") if batch == 1 else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    engine = Engine(step)
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer).attach(engine)

    *_, last = played(server, lambda: engine.run(torch.arange(3.0)))

    assert network.weight.item() == -2 * 0.5 * 3
    assert last["scaffold:weight"].tolist() == [[3.0]]


class Regression:
    """Two sites with other inputs and other targets, and the optimum of both."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs, self.targets = [], []
        for index in range(2):
            scale = torch.rand(FEATURES, generator=generator) * 2 + 0.2
            found = torch.randn(20, FEATURES, generator=generator) * scale
            self.inputs.append(found)
            noise = torch.randn(20, 1, generator=generator)
            self.targets.append(noise + 3 * index)
        together = torch.cat(self.inputs), torch.cat(self.targets)
        self.optimum: Tensor = torch.linalg.lstsq(*together).solution.T

    def play(self, file: Path, index: int) -> None:
        """Train at a site, by plain SGD on all its rows."""
        network = nn.Linear(FEATURES, 1, bias=False)
        nn.init.zeros_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
        batch = self.inputs[index], self.targets[index]

        def step(*_: Any) -> None:
            optimizer.zero_grad()
            loss_on(network, batch).backward()
            optimizer.step()

        engine = Engine(step)
        FLHandler(file, network=network, optimizer=optimizer).attach(engine)
        engine.run(torch.zeros(20))


@pytest.mark.parametrize(
    ("local", "least", "most"), [(Plain(), 0.1, 1.0), (Scaffold(), 0.0, 1e-5)]
)
def test_a_regression_ends_at_the_optimum_where_averaging_does_not(
    local: Local, least: float, most: float, pair: Any
) -> None:
    server, files = pair(plan(local, rounds=400, schedule=Schedule(every_n_steps=20)))
    data = Regression()

    acts = [lambda i=i: data.play(files[i], i) for i in range(2)]
    *_, last = played(server, *acts)

    found = torch.from_numpy(last["weight"].copy())
    assert least <= float((found - data.optimum).norm()) <= most
