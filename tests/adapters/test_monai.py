"""The handler in MONAI's own engines, and in a Bundle by a second config file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import MeanSquaredError
from monai.data import DataLoader, Dataset, list_data_collate
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    EarlyStopHandler,
    LrScheduleHandler,
    StatsHandler,
    ValidationHandler,
)
from torch import nn
from torch.optim import Optimizer

from adapters.ignite_runs import furthest, linear, loss_on, net, rows, sgd
from adapters.sites import assert_equal, models, records, together
from flare_adapters.monai import FLHandler
from flare_core import Plan, RunAbortedError, Schedule, Selection
from support import RunServer, SiteFile


def samples(seed: int = 0, num: int = 22) -> Dataset:
    images, labels = rows(seed, num).tensors
    pairs = zip(images, labels, strict=True)
    return Dataset([{"image": image, "label": label} for image, label in pairs])


def pairs(output: Any) -> Any:
    """Stack what MONAI has decollated."""
    return tuple(torch.stack([one[key] for one in output]) for key in ("pred", "label"))


def validator(network: nn.Module, handlers: Sequence[Any] = (), **loading: Any) -> Any:
    return SupervisedEvaluator(
        "cpu",
        DataLoader(samples(9, 12), **({"batch_size": 5} | loading)),
        network,
        key_val_metric={"mse": MeanSquaredError(output_transform=pairs)},
        val_handlers=list(handlers),
    )


def trainer(
    network: nn.Module,
    loader: Any,
    handlers: Sequence[Any],
    *,
    optimizer: Optimizer | None = None,
    epochs: int = 1,
    **settings: Any,
) -> SupervisedTrainer:
    return SupervisedTrainer(
        "cpu",
        epochs,
        loader,
        network,
        optimizer or sgd(network),
        nn.MSELoss(),
        train_handlers=list(handlers),
        **settings,
    )


@pytest.mark.parametrize(
    "schedule", [Schedule(every_n_epochs=1), Schedule(every_n_steps=2)]
)
def test_one_site_is_the_plain_script_bit_for_bit(
    schedule: Schedule, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3, schedule=schedule))
    file = site_file("a", server.endpoint)

    def train(file: Path | None, epochs: int) -> dict[str, Any]:
        network = net()
        torch.manual_seed(3)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        validation = validator(network, shuffle=True)  # draws numbers
        trace: list[Any] = []
        handlers = [
            LrScheduleHandler(cosine, print_lr=False),
            ValidationHandler(1, validation),
        ]
        if file is not None:
            handlers.append(FLHandler(file, evaluator=validation))
        run = trainer(
            network,
            DataLoader(samples(), batch_size=4, shuffle=True),
            handlers,
            optimizer=optimizer,
            epochs=epochs,
            accumulation_steps=4,  # a step after 4 batches, and one after the last 2
        )

        @run.on(Events.ITERATION_COMPLETED)
        def note(engine: Engine) -> None:
            loss = engine.state.output[0]["loss"]
            trace.append((loss, optimizer.param_groups[0]["lr"]))

        run.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: trace.append(dict(validation.state.metrics))
        )
        run.run()
        return {
            "weights": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "trace": trace,
            "counters": [run.state.iteration, run.state.epoch, run.state.max_epochs],
            "best": [validation.state.best_metric, validation.state.best_metric_epoch],
            "generator": torch.get_rng_state(),
        }

    plain = train(None, epochs=3)
    found = train(file, epochs=1)

    assert server.result().rounds == 3
    assert len(plain["trace"]) == 3 + 18
    assert_equal(found, plain)
    reported = [one.global_metrics for one in records(server)]
    last = {"mse": plain["trace"][-1]["mse"]}
    assert [*reported, server.result().metrics][-1] == last
    assert [one.num_examples for one in records(server)] == [22, 22, 22]


def test_rounds_of_steps_end_within_accumulated_epochs(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, schedule=Schedule(every_n_steps=3)))
    network = net()
    validation = validator(network)
    handler = FLHandler(site_file("a", server.endpoint), evaluator=validation)
    loader = DataLoader(samples(), batch_size=4)

    run = trainer(
        network,
        loader,
        [ValidationHandler(1, validation), handler],
        accumulation_steps=4,
    )
    run.run()

    assert (run.state.epoch, run.state.iteration) == (3, 18)
    assert [one.num_examples for one in records(server)] == [22 + 16, 6 + 22]
    assert [one.sites["a"].num_steps for one in records(server)] == [3, 3]
    assert all(one.global_metrics for one in records(server))
    assert server.result().metrics


def test_the_model_is_validated_in_the_end_where_the_run_stops_within_an_epoch(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1, schedule=Schedule(every_n_steps=2)))
    network = net()
    validation = validator(network)
    handler = FLHandler(site_file("a", server.endpoint), evaluator=validation)

    run = trainer(network, DataLoader(samples(), batch_size=4), [handler])
    run.run()

    assert run.state.iteration == 2
    assert network.training
    validation.run()
    assert server.result().metrics == {"mse": validation.state.metrics["mse"]}


@pytest.mark.parametrize("last", [False, True])
def test_validation_and_checkpoints_are_of_the_global_model(
    last: bool,  # noqa: FBT001 - a parameter of the test
    pair: Any,
    tmp_path: Path,
) -> None:
    server, files = pair()
    network = linear(0)
    validation = validator(network)
    saver = CheckpointSaver(
        str(tmp_path), {"model": network}, save_interval=1, n_saved=5
    )
    handlers = [saver, ValidationHandler(1, validation)]
    handler = FLHandler(files[0], evaluator=validation)
    handlers.insert(len(handlers) if last else 0, handler)

    raised = together(
        trainer(network, whole_of(samples(0)), handlers).run,
        trainer(linear(1), whole_of(samples(1)), [FLHandler(files[1])]).run,
    )

    assert raised == [None, None]
    for epoch in (1, 2):
        saved = torch.load(tmp_path / f"model_epoch={epoch}.pt", weights_only=True)
        expected = linear()
        expected.load_state_dict(saved)
        assert furthest(models(server)[epoch], expected) == 0.0
        found = [records(server)[1].sites["a"].global_metrics, None][epoch - 1]
        metrics = found or server.result().sites["a"]
        error = float(loss_on(expected, rows(9, 12).tensors).detach())
        assert metrics == {"mse": pytest.approx(error)}


def whole_of(data: Dataset) -> Any:
    return DataLoader(data, batch_size=len(data))


def test_a_checkpoint_loaded_by_a_later_handler_is_what_is_proposed(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=1))
    torch.save({"model": linear(7).state_dict()}, tmp_path / "pretrained.pt")
    network = linear(0)
    handlers = [
        FLHandler(site_file("a", server.endpoint)),
        CheckpointLoader(str(tmp_path / "pretrained.pt"), {"model": network}),
    ]

    trainer(network, whole_of(samples()), handlers).run()

    assert models(server)[0]["bias"].tolist() == [7.0]


@pytest.mark.parametrize("decollate", [False, True])
def test_crops_are_examples_of_their_own(
    decollate: bool,  # noqa: FBT001 - a parameter of the test
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=1))
    two_crops = Dataset([[dict(one), dict(one)] for one in samples(0, 7)])
    loader = DataLoader(two_crops, batch_size=4, collate_fn=list_data_collate)
    handler = FLHandler(site_file("a", server.endpoint))

    trainer(linear(), loader, [handler], decollate=decollate).run()

    assert records(server)[0].num_examples == 14
    assert records(server)[0].metrics["loss"] > 0


@pytest.mark.filterwarnings("ignore:'(min|cumulative)_delta:DeprecationWarning")
def test_an_early_stop_of_monai_tells_the_server(pair: Any) -> None:
    _, files = pair(Plan(rounds=9, selection=Selection(sites=2)))
    network = linear()
    stopper = EarlyStopHandler(1, lambda _: 0.0)
    validation = validator(network, [stopper])
    handlers = [ValidationHandler(1, validation), FLHandler(files[0])]
    run = trainer(network, whole_of(samples(0)), handlers)
    stopper.set_trainer(run)

    raised = together(
        run.run, trainer(linear(), whole_of(samples(1)), [FLHandler(files[1])]).run
    )

    assert raised[0] is None
    assert isinstance(raised[1], RunAbortedError)
    assert "site 'a' left: its run was stopped (EarlyStopping" in str(raised[1])


@pytest.mark.parametrize("last", [False, True])
def test_an_error_is_told_though_a_stats_handler_raises_it_first(
    last: bool,  # noqa: FBT001 - a parameter of the test
    pair: Any,
) -> None:
    _, files = pair()
    handlers = [StatsHandler(iteration_log=False, epoch_log=False)]
    handlers.insert(len(handlers) if last else 0, FLHandler(files[1]))
    broken = trainer(linear(), whole_of(samples(1)), handlers)
    broken.loss_function = lambda *_: None

    raised = together(
        trainer(linear(), whole_of(samples(0)), [FLHandler(files[0])]).run, broken.run
    )

    assert isinstance(raised[1], AttributeError)
    assert "site 'b' failed: AttributeError" in str(raised[0])
