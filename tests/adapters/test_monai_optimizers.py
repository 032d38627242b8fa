"""Steps of optimizers: counted, corrected, of a GAN, and under mixed precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapters.ignite_runs import RATE, furthest, linear, loss_on, play, rows, sgd, whole
from adapters.sites import models, records, together
from flare_adapters.monai import FLHandler
from flare_core import FedProx, Local, Plan
from support import RunServer, SiteFile


def gan(
    file: Path, index: int, *, backward_first: bool = False, **options: Any
) -> nn.ModuleDict:
    """Train a generator and a discriminator on their two optimizers."""
    parts = nn.ModuleDict({"G": linear(index), "D": linear(index + 1)})
    optimizers = [sgd(parts["G"]), sgd(parts["D"], 0.01)]

    def step(_: Engine, batch: Any) -> dict[str, float]:
        losses = [loss_on(parts[name], batch) for name in "GD"]
        if backward_first:
            for loss in losses:
                loss.backward()
        for loss, optimizer in zip(losses, optimizers, strict=True):
            if not backward_first:
                loss.backward()
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        return {"g_loss": float(losses[0].detach())}

    trainer = Engine(step)
    handler = FLHandler(file, network=parts, optimizer=optimizers, **options)
    handler.attach(trainer)
    trainer.run(DataLoader(rows(index), batch_size=8))
    return parts


def test_a_gan_travels_as_a_dictionary_of_its_parts(pair: Any) -> None:
    server, files = pair()
    found: list[nn.ModuleDict] = []

    raised = together(*(lambda i=i: found.append(gan(files[i], i)) for i in range(2)))

    assert raised == [None, None]
    assert models(server)[-1].keys() == {"G.weight", "G.bias", "D.weight", "D.bias"}
    assert [furthest(models(server)[-1], one) for one in found] == [0.0, 0.0]


def test_each_optimizer_of_a_gan_counts_its_steps(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))

    gan(site_file("a", server.endpoint), 0, every_n_steps=4)

    assert [one.num_examples for one in records(server)] == [16, 14]
    assert [one.sites["a"].num_steps for one in records(server)] == [4, 4]


def by_hand(mu: float, network: nn.Module, rate: float, batches: Any) -> None:
    """Take FedProx's steps of one round."""
    anchors = [one.detach().clone() for one in network.parameters()]
    for batch in batches:
        network.zero_grad()
        loss_on(network, batch).backward()
        for one, anchor in zip(network.parameters(), anchors, strict=True):
            assert one.grad is not None
            one.data -= rate * (one.grad + mu * (one.detach() - anchor))


def test_fedprox_pulls_each_step_towards_the_global_model(
    run_server: RunServer, site_file: SiteFile
) -> None:
    def weights(local: Local) -> Tensor:
        server = run_server(Plan(rounds=1, local=local))
        network = linear()
        play(
            network,
            DataLoader(rows(), batch_size=11),
            site_file("a", server.endpoint),
        )
        return network.weight.detach()

    plain, expected = linear(), linear()
    play(plain, DataLoader(rows(), batch_size=11), None)
    by_hand(0.5, expected, RATE, DataLoader(rows(), batch_size=11))

    pulled = weights(FedProx(mu=0.5))

    torch.testing.assert_close(pulled, expected.weight.detach())
    assert not torch.allclose(pulled, plain.weight.detach(), atol=1e-4)
    assert torch.equal(weights(FedProx(mu=0.0)), plain.weight.detach())


@pytest.mark.parametrize("backward_first", [False, True])
def test_fedprox_pulls_each_part_of_a_gan_once_a_step(
    backward_first: bool,  # noqa: FBT001 - a parameter of the test
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=0.5)))

    parts = gan(site_file("a", server.endpoint), 0, backward_first=backward_first)

    for name, value, rate in [("G", 0, RATE), ("D", 1, 0.01)]:
        expected = linear(value)
        by_hand(0.5, expected, rate, DataLoader(rows(), batch_size=8))
        torch.testing.assert_close(parts[name].weight, expected.weight)


@pytest.mark.parametrize("fused", [False, True])
def test_fedprox_is_not_scaled_by_mixed_precision(
    fused: bool,  # noqa: FBT001 - a parameter of the test
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=0.5)))
    network = linear()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(_: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        scaler.scale(loss_on(network, batch)).backward()
        scaler.step(optimizer)
        scaler.update()

    trainer = Engine(step)
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer).attach(trainer)
    trainer.run(DataLoader(rows(), batch_size=11))

    expected = linear()
    by_hand(0.5, expected, RATE, DataLoader(rows(), batch_size=11))
    torch.testing.assert_close(network.weight, expected.weight)


def test_a_step_that_mixed_precision_skips_does_not_count(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    network = linear()
    optimizer = sgd(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        broken = float("inf") if engine.state.iteration == 2 else 1.0
        scaler.scale(loss_on(network, batch) * broken).backward()
        scaler.step(optimizer)
        scaler.update()

    trainer = Engine(step)
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer, every_n_steps=3).attach(
        trainer
    )
    trainer.run(DataLoader(rows(), batch_size=4))

    assert trainer.state.iteration == 4
    assert records(server)[0].num_examples == 16


def test_reset_drops_the_optimizers_state_each_round(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3))
    network, steps = linear(), []
    optimizer = torch.optim.Adam(network.parameters())

    def prepare(trainer: Engine) -> None:
        @trainer.on(Events.ITERATION_STARTED)
        def note(_: Engine) -> None:
            state = optimizer.state.values()
            steps.append(max((int(one["step"]) for one in state), default=0))

    play(
        network,
        DataLoader(rows(), batch_size=11),
        site_file("a", server.endpoint),
        optimizer=optimizer,
        prepare=prepare,
        optimizer_state="reset",
    )

    assert steps == [0, 1, 0, 1, 0, 1]


def test_no_hook_stays_behind(run_server: RunServer, site_file: SiteFile) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=0.5)))
    network = linear()
    optimizer = sgd(network)

    play(network, whole(rows()), site_file("a", server.endpoint), optimizer=optimizer)

    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
