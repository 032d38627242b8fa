"""SCAFFOLD inside the run of an Ignite engine."""

from typing import Any

import pytest
import torch
from ignite.engine import Engine

from adapters.quadratics import OPTIMUM, STEPS, Quadratic, plan, play, sgd
from adapters.sites import models, together
from flare_adapters.monai import FLHandler
from flare_core import Plan, Scaffold
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

    raised = together(
        lambda: engine.run(torch.zeros(2 * STEPS)), lambda: play(files[1], 1)
    )

    assert raised == [None, None]
    assert models(server)[-1]["weight"][0] == pytest.approx(OPTIMUM, abs=1e-9)
    assert network.weight.item() == models(server)[-1]["weight"][0]


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
    engine.run(torch.arange(3.0))

    assert network.weight.item() == -2 * 0.5 * 3
    assert models(server)[-1]["scaffold:weight"].tolist() == [[3.0]]
