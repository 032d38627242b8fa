"""The handler on bare Ignite engines against the plain script."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DataLoader

from adapters.ignite_runs import (
    engine,
    evaluator,
    furthest,
    linear,
    loss_on,
    net,
    play,
    rows,
    sgd,
    whole,
)
from adapters.sites import assert_equal, manifest, models, records, together
from flare_adapters.monai import FLHandler
from flare_core import Plan, Schedule, Selection
from flare_core.application import SiteJoined
from support import RunServer, SiteFile


@pytest.mark.parametrize(
    "plan",
    [
        Plan(rounds=3, schedule=Schedule(every_n_epochs=2)),
        Plan(rounds=9, schedule=Schedule(every_n_steps=2)),  # within epochs of 3
    ],
)
def test_one_site_is_the_plain_script_bit_for_bit(
    plan: Plan, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan)
    file = site_file("a", server.endpoint)

    def train(file: Path | None, epochs: int) -> dict[str, Any]:
        network = net()
        torch.manual_seed(3)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 18)
        validation = evaluator(network)
        trace: list[Any] = []
        shuffled = DataLoader(rows(1), batch_size=5, shuffle=True)  # draws numbers

        validation.add_event_handler(
            Events.STARTED,
            lambda: (random.random(), np.random.rand()),  # noqa: NPY002, S311
        )

        def prepare(trainer: Engine) -> None:
            @trainer.on(Events.EPOCH_COMPLETED)
            def validate(_: Engine) -> None:
                validation.run(shuffled)
                trace.append(dict(validation.state.metrics))

            @trainer.on(Events.ITERATION_COMPLETED)
            def schedule(trainer: Engine) -> None:
                if trainer.state.iteration % 2 == 0:
                    cosine.step()
                trace.append(cosine.get_last_lr())
                trace.append((random.random(), np.random.rand()))  # noqa: NPY002, S311

        random.seed(3)
        np.random.seed(3)  # noqa: NPY002 - what scripts do
        trainer = play(
            network,
            DataLoader(rows(), batch_size=4, shuffle=True),
            file,
            epochs=epochs,
            optimizer=optimizer,
            prepare=prepare,
            accumulate=2,
            **({"evaluator": validation} if file else {}),
        )
        state = trainer.state
        return {
            "weights": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "trace": trace,
            "counters": [state.iteration, state.epoch, state.max_epochs],
            "modes": [module.training for module in network.modules()],
            "generator": torch.get_rng_state(),
        }

    plain = train(None, epochs=6)
    found = train(file, epochs=1)

    assert server.result().rounds == plan.rounds
    assert len(plain["trace"]) == 6 + 2 * 36
    assert sum(bool(one.global_metrics) for one in records(server)) >= plan.rounds - 2
    assert_equal(found, plain)


def test_two_sites_are_centralised_gradient_descent(pair: Any) -> None:
    server, files = pair(Plan(rounds=3, selection=Selection(sites=2)))
    parts = [rows(0, 24), rows(1, 40)]

    raised = together(
        *(lambda i=i: play(linear(i), whole(parts[i]), files[i]) for i in range(2))
    )

    assert raised == [None, None]
    central = linear(0)
    optimizer = sgd(central)
    batch = [torch.cat(both) for both in zip(*(p.tensors for p in parts), strict=True)]
    for _ in range(3):
        optimizer.zero_grad()
        loss_on(central, batch).backward()
        optimizer.step()
    assert furthest(models(server)[-1], central) <= 1e-6
    assert records(server)[0].num_examples == 64


@pytest.mark.parametrize("order", ["handler first", "handler last"])
def test_validation_sees_the_global_model_whatever_the_order(
    order: str, pair: Any
) -> None:
    server, files = pair()
    network, sums = linear(0), []

    def note(_: Engine) -> None:
        sums.append(float(network.weight.detach().sum()))

    optimizer = sgd(network)
    trainer = engine(network, optimizer)
    handler = FLHandler(files[0], network=network, optimizer=optimizer)
    if order == "handler first":
        handler.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    if order == "handler last":
        handler.attach(trainer)
    together(
        lambda: trainer.run(whole(rows(0))),
        lambda: play(linear(1), whole(rows(1)), files[1]),
    )

    assert sums == [float(one["weight"].sum()) for one in models(server)[1:]]


@pytest.mark.parametrize("order", ["handler first", "handler last"])
def test_weights_loaded_when_the_run_starts_are_those_proposed(
    order: str, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    network = linear(0)
    optimizer = sgd(network)
    file = site_file("a", server.endpoint)
    handler = FLHandler(file, network=network, optimizer=optimizer)
    trainer = engine(network, optimizer)

    def load(_: Engine) -> None:
        network.load_state_dict(linear(7).state_dict())

    if order == "handler first":
        handler.attach(trainer)
    trainer.add_event_handler(Events.STARTED, load)
    if order == "handler last":
        handler.attach(trainer)
    trainer.run(whole(rows()))

    assert models(server)[0]["bias"].tolist() == [7.0]


@pytest.mark.parametrize(
    ("every", "own", "seen"),
    [
        # 4 batches an epoch: the script's own validations happen at 4, 8, 12
        ({"every_n_steps": 2}, True, [0, 2, 4, 6]),  # 6 is within an epoch
        ({"every_n_steps": 3}, True, [0, 3, 4, 6, 8, 9]),
        ({"every_n_steps": 4}, True, [0, 4, 8, 12]),
        ({"every_n_steps": 5}, True, [0, 4, 5, 8, 10, 12, 15]),
        ({"every_n_steps": 3}, False, [0, 3, 6, 9]),
        ({"every_n_epochs": 1}, True, [4, 8, 12]),  # as often as the script says
        ({"every_n_epochs": 1}, False, []),
    ],
)
def test_rounds_of_steps_get_the_validations_that_the_script_does_not_do(
    every: dict[str, Any],
    own: bool,  # noqa: FBT001 - a parameter of the test
    seen: list[int],
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=3))
    file = site_file("a", server.endpoint)
    network, validation, at = linear(), evaluator(linear()), []
    validation.run(whole(rows(1)))  # so that it knows its data

    def prepare(trainer: Engine) -> None:
        validation.add_event_handler(
            Events.COMPLETED, lambda _: at.append(num_steps[0])
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, count)
        if own:
            trainer.add_event_handler(
                Events.EPOCH_COMPLETED, lambda: validation.run(whole(rows(1)))
            )

    num_steps = [0]

    def count(_: Engine) -> None:
        num_steps[0] += 1

    loader = DataLoader(rows(), batch_size=6)
    play(network, loader, file, prepare=prepare, evaluator=validation, **every)

    assert at == seen
    boundaries = [0, *(n * _length(every) for n in (1, 2, 3))]
    metrics = [one.global_metrics for one in records(server)]
    reported = [*metrics, server.result().metrics]
    assert [bool(one) for one in reported] == [at in seen for at in boundaries]
    assert all(one.keys() <= {"error"} for one in reported)


def _length(every: dict[str, int]) -> int:
    return every.get("every_n_steps") or 4 * every["every_n_epochs"]


def test_validation_leaves_each_layer_in_its_mode(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, schedule=Schedule(every_n_steps=2)))
    network = net()
    optimizer, modes = sgd(network), []

    def step(_: Engine, batch: Any) -> None:
        modes.append([module.training for module in network])
        optimizer.zero_grad()
        loss_on(network, batch).backward()
        optimizer.step()

    trainer, validation = Engine(step), evaluator(network)
    validation.run(whole(rows(1)))  # so that it knows its data
    network.train()
    network[1].eval()  # its statistics are to stay
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer, evaluator=validation).attach(
        trainer
    )
    trainer.run(DataLoader(rows(), batch_size=8))

    assert modes == [[True, False, True, True, True]] * 4
    assert all(one.global_metrics for one in records(server))


def test_global_metrics_are_of_the_model_that_a_round_starts_from(pair: Any) -> None:
    plan = Plan(
        rounds=2, schedule=Schedule(every_n_steps=2), selection=Selection(sites=2)
    )
    server, files = pair(plan)

    def site(index: int) -> None:
        network = linear(index)
        validation = evaluator(network)
        validation.run(whole(rows(9)))
        loader = DataLoader(rows(index), batch_size=8)
        play(network, loader, files[index], evaluator=validation)

    assert together(lambda: site(0), lambda: site(1)) == [None, None]

    expected = []
    for model in models(server):
        network = linear()
        weights = {name: torch.from_numpy(model[name].copy()) for name in model}
        network.load_state_dict(weights)
        expected.append(float(loss_on(network, rows(9).tensors).detach()))
    for name in "ab":
        found = [one.sites[name].global_metrics["error"] for one in records(server)]
        assert [*found, server.result().sites[name]["error"]] == expected


def test_the_mean_training_loss_of_a_round_is_reported(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    losses: list[float] = []

    def prepare(trainer: Engine) -> None:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: losses.append(float(engine.state.output["loss"])),
        )

    file = site_file("a", server.endpoint)
    play(linear(), DataLoader(rows(), batch_size=11), file, prepare=prepare)

    found = [one.metrics["loss"] for one in records(server)]
    assert found == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


def test_only_trainable_tensors_leave_a_frozen_backbone(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)
    base = nn.Linear(4, 256).requires_grad_(requires_grad=False)
    network = nn.Sequential(base, nn.Linear(256, 256), nn.Linear(256, 1))

    play(network, whole(rows()), file, optimizer=sgd(network, 0.001))

    assert {one.name for one in manifest(file)} == {
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
    }
    trained = sum(4 * one.numel() for one in network.parameters() if one.requires_grad)
    for record in records(server):
        assert trained <= record.bytes_up <= 1.02 * trained
        assert trained <= record.bytes_down <= 1.02 * trained
    joined = server.told(SiteJoined)[0]
    assert {one.name for one in joined.stays} == {"0.weight", "0.bias"}


def test_switched_off_the_handler_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLARE_SITE", "off")
    network, plain = net(), net()
    trainer = engine(network, sgd(network))
    run = trainer.run

    FLHandler(evaluator=evaluator(network)).attach(trainer)

    assert trainer.run == run
    torch.manual_seed(1)
    trainer.run(whole(rows()))
    torch.manual_seed(1)
    play(plain, whole(rows()), None)
    assert_equal(network.state_dict(), plain.state_dict())
