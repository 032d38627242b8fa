"""What has a state is found where a user puts it, and saved as plain data."""

import logging
from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, EMAHandler
from ignite.metrics import Average
from monai.handlers import LrScheduleHandler
from monai.utils.enums import CommonKeys
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from adapters.ignite_runs import engine, linear, rows, sgd, whole
from flare_adapters.monai._plain import plain, plain_of
from flare_adapters.monai._recovery import Recovery
from flare_adapters.monai._stateful import loaders_in, stateful_in


class Box:
    """A user's own object."""

    def __init__(self, inside: object) -> None:
        self.inside = inside

    def note(self, _: Engine) -> None:
        """Do nothing."""


@pytest.fixture
def network() -> nn.Module:
    return linear()


@pytest.fixture
def scheduler(network: nn.Module) -> ExponentialLR:
    return ExponentialLR(sgd(network), 0.5)


def found_by(network: nn.Module, handler: Any, *given: Any) -> list[object]:
    trainer = engine(network, sgd(network))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=1), handler, *given)
    return list(stateful_in(trainer, None, [network]).values())


def handlers(scheduler: ExponentialLR) -> dict[str, Any]:
    """Return handlers that step a scheduler, as people write them."""

    def closure(_: Engine) -> None:
        scheduler.step()

    def calls(engine: Engine) -> None:
        closure(engine)

    return {
        "closure": closure,
        "lambda": lambda _: [one.step() for one in [scheduler]],
        "called": calls,
        "partial": partial(closure),
        "method": Box([scheduler]).note,
        "monai": LrScheduleHandler(scheduler),
    }


@pytest.mark.parametrize(
    "kind", ["closure", "lambda", "called", "partial", "method", "monai"]
)
def test_a_scheduler_is_found_in_a_handler(
    kind: str, network: nn.Module, scheduler: ExponentialLR
) -> None:
    assert scheduler in found_by(network, handlers(scheduler)[kind])


def test_a_scheduler_is_found_that_is_given_with_a_handler(
    network: nn.Module, scheduler: ExponentialLR
) -> None:
    def step(_: Engine, given: ExponentialLR) -> None:
        given.step()

    assert scheduler in found_by(network, step, scheduler)


def test_a_copy_of_the_network_is_found_and_the_network_is_not(
    network: nn.Module,
) -> None:
    trainer = engine(network, sgd(network))
    handler = EMAHandler(network)
    handler.attach(trainer)
    wrapped = nn.Sequential(network)
    trainer.add_event_handler(Events.STARTED, lambda: wrapped.train(mode=True))

    found = list(stateful_in(trainer, None, [network]).values())

    assert handler.ema_model in found
    assert network not in found
    assert wrapped not in found


def test_an_evaluator_and_what_hangs_on_it_is_found(network: nn.Module) -> None:
    trainer, evaluator = engine(network, sgd(network)), Engine(lambda *_: None)
    stopper = EarlyStopping(1, lambda _: 0.0, trainer)
    evaluator.add_event_handler(Events.COMPLETED, stopper)
    data = whole(rows())
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data))

    assert stopper in stateful_in(trainer, None, []).values()
    assert list(loaders_in(trainer, []).values()) == [data]


def test_a_metric_goes_on_in_the_middle(network: nn.Module, tmp_path: Path) -> None:
    def trainer_and_metric() -> tuple[Engine, Average]:
        trainer, metric = Engine(lambda _, batch: float(batch)), Average()
        metric.attach(trainer, "average")
        return trainer, metric

    def recovery(trainer: Engine) -> Recovery:
        return Recovery(trainer, None, network, [], None)

    trainer, metric = trainer_and_metric()
    trainer.run([1.0, 2.0, 6.0])
    recovery(trainer).save(tmp_path, at={}, stepped=[])
    again, other = trainer_and_metric()
    again.state.dataloader = [1.0, 2.0, 6.0]

    found = recovery(again)
    found.open(tmp_path)
    found.restore(num_played=0)

    assert other.compute() == metric.compute() == 3.0
    assert again.state.metrics == {"average": 3.0}
    assert again.state.iteration == 3


def test_what_cannot_be_saved_is_named_once(
    network: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Strange:
        def state_dict(self) -> dict[str, Any]:
            return {"box": Box(1)}

        def load_state_dict(self, _: object) -> None: ...

    strange = Strange()
    trainer = Engine(lambda *_: None)
    trainer.add_event_handler(Events.STARTED, Box(strange).note)
    trainer.run([0])
    recovery = Recovery(trainer, None, network, [], None)

    with caplog.at_level(logging.WARNING):
        recovery.save(tmp_path, at={}, stepped=[])
        recovery.save(tmp_path, at={}, stepped=[])

    assert len(caplog.messages) == 1
    assert "inside cannot be saved (a Box is no plain data)" in caplog.text


def test_plain_data_are_loaded_as_weights_only(tmp_path: Path) -> None:
    state = nn.BatchNorm1d(2).state_dict()
    value = {
        CommonKeys.IMAGE: np.float64(0.1),
        "state": state,
        "counts": Counter([1, 1, 2]),
        "numbers": (1, [2.5, None, True], {3}),
        "view": torch.arange(6)[2:4],
        "type": torch.float16,
    }

    torch.save(plain(value), tmp_path / "file")
    found = torch.load(tmp_path / "file", weights_only=True)

    assert found["image"] == 0.1
    assert found["state"]._metadata == state._metadata
    assert isinstance(found["state"], OrderedDict)
    assert found["counts"] == value["counts"]
    assert found["numbers"] == value["numbers"]
    assert found["view"].tolist() == [2, 3]
    assert found["view"].untyped_storage().nbytes() == found["view"].nbytes
    assert plain_of({"good": 1, "bad": [Box(1)]}) == {"good": 1}
