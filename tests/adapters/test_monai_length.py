"""Where a round and the run of an Ignite engine end."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, IterableDataset

from adapters.ignite_runs import (
    engine,
    evaluator,
    linear,
    loss_on,
    play,
    rows,
    sgd,
    whole,
)
from adapters.sites import records
from flare_adapters.monai import FLHandler
from flare_core import Plan, Schedule
from flare_core.application import SiteJoined
from support import RunServer, SiteFile


@pytest.mark.parametrize(
    ("every", "accumulate", "examples"),
    [
        ({"every_n_steps": 2}, 1, [8, 8, 6]),
        ({"every_n_steps": 2}, 2, [16, 14, 14]),  # 6 batches of 4, the last of 2
        ({"every_n_epochs": 1}, 2, [22, 22, 22]),
    ],
)
def test_rounds_count_true_optimizer_steps(
    every: dict[str, Any],
    accumulate: int,
    examples: list[int],
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=3))
    file = site_file("a", server.endpoint)

    play(
        linear(), DataLoader(rows(), batch_size=4), file, accumulate=accumulate, **every
    )

    assert [one.num_examples for one in records(server)] == examples


class Endless(IterableDataset[Any]):
    """Rows without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(rows())


@pytest.mark.parametrize(
    ("every", "examples"),
    [
        ({"every_n_epochs": 1}, [22, 22]),
        ({"every_n_epochs": 2}, [44, 44]),
        ({"every_n_steps": 8}, [30, 30]),
    ],
)
def test_an_epoch_of_unknown_length_ends_a_round_too(
    every: dict[str, Any],
    examples: list[int],
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)

    play(linear(), DataLoader(Endless(), batch_size=4), file, **every)

    assert [one.num_examples for one in records(server)] == examples


def test_a_final_model_that_came_late_in_its_epoch_is_validated_too(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    file = site_file("a", server.endpoint)
    network = linear()
    validation = evaluator(network)

    def prepare(trainer: Engine) -> None:
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: validation.run(whole(rows(1)))
        )

    loader = DataLoader(Endless(), batch_size=4)
    play(network, loader, file, prepare=prepare, evaluator=validation)

    assert server.result().metrics == {
        "error": float(loss_on(network, rows(1).tensors).detach())
    }


def test_an_epoch_cut_short_ends_its_round_and_the_next_begins_anew(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3))
    file = site_file("a", server.endpoint)

    def prepare(trainer: Engine) -> None:
        @trainer.on(Events.ITERATION_COMPLETED(once=2))
        def cut(engine: Engine) -> None:
            engine.terminate_epoch()

    trainer = play(linear(), DataLoader(rows(), batch_size=4), file, prepare=prepare)

    assert [one.num_examples for one in records(server)] == [8, 22, 22]
    assert (trainer.state.epoch, trainer.state.iteration) == (3, 14)


def test_the_plan_sets_the_length_and_the_log_says_so(
    run_server: RunServer, site_file: SiteFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server(Plan(rounds=2, schedule=Schedule(every_n_epochs=3)))
    network = linear()
    optimizer = sgd(network)
    trainer = engine(network, optimizer)
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer).attach(trainer)

    with caplog.at_level(logging.WARNING, logger="flare_adapters"):
        trainer.run(whole(rows()), max_iters=4)

    assert (trainer.state.epoch, trainer.state.max_epochs) == (6, 6)
    assert "6 epochs instead of max_iters=4; LR schedules that were" in caplog.text
    joined = server.told(SiteJoined)[0]
    assert joined.horizon == "max_iters=4"


def test_a_run_of_the_planned_length_says_nothing(
    run_server: RunServer, site_file: SiteFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server(Plan(rounds=2))

    play(linear(), whole(rows()), site_file("a", server.endpoint), epochs=2)

    assert "length" not in caplog.text


def test_a_run_that_is_interrupted_goes_on_where_it_was(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    network = linear()
    optimizer = sgd(network)
    trainer = engine(network, optimizer)

    @trainer.on(Events.ITERATION_COMPLETED(once=8))
    def interrupt(engine: Engine) -> None:
        engine.interrupt()

    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer).attach(trainer)
    loader = DataLoader(rows(), batch_size=4)
    trainer.run(loader, max_epochs=1)
    assert trainer.state.iteration == 8
    trainer.run(loader)

    assert [one.num_examples for one in records(server)] == [22, 22]
    assert not server.result().error
