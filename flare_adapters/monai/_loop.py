"""The length of an Ignite run, its loss, and a validation in the middle of it."""

import inspect
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from flare_adapters._torch import LocalSession


def horizon_of(engine: Engine) -> str:
    """Return what the run is set to, in the user's words."""
    if engine.state.max_epochs is None:
        return f"max_iters={engine.state.max_iters}"
    return f"max_epochs={engine.state.max_epochs}"


def fit_length_to(session: LocalSession, engine: Engine) -> None:
    """Set the length of the run to the plan's.

    Ignite reads it before each epoch.  How many epochs a number of optimizer steps
    takes is only an estimate; `go_on` adds what is missing.
    """
    state, epochs = engine.state, session.total_length
    if session.schedule.unit == "steps":
        epochs = math.ceil(epochs / state.epoch_length) if state.epoch_length else 1
    state.max_iters = None
    state.max_epochs = state.epoch + epochs


def counters_of(engine: Engine) -> dict[str, Any]:
    """Return how far the run is, and how far it is to go."""
    names = ("epoch", "iteration", "epoch_length", "max_epochs")
    return {name: getattr(engine.state, name) for name in names}


def begin_within(engine: Engine, at: Mapping[str, Any]) -> None:
    """Let the run begin with the epoch that was being played; it is counted again."""
    for name in counters_of(engine):
        setattr(engine.state, name, at[name])
    engine.state.epoch -= 1


def go_on(engine: Engine) -> None:
    """Let another epoch follow."""
    engine.state.max_epochs = max(engine.state.max_epochs, engine.state.epoch + 1)


def stop(engine: Engine, *, epoch_is_over: bool) -> None:
    """End the run.

    Handlers of EPOCH_COMPLETED, among them validation and checkpoints, still see the
    end of an epoch; `Engine.terminate` would skip them.
    """
    if epoch_is_over:
        engine.state.max_epochs = engine.state.epoch
    else:
        engine.terminate()


def loss_of(output: Any) -> Tensor | float | None:
    """Return the training loss in what an iteration returned, if it is there.

    That is a scalar, the entry ``loss`` of a mapping, or the same in a decollated
    list, where MONAI has repeated it for each example.
    """
    if isinstance(output, list) and output:
        output = output[0]
    if isinstance(output, Mapping):
        output = output.get("loss")
    if isinstance(output, Tensor):
        return output.reshape(()) if output.numel() == 1 else None
    return float(output) if isinstance(output, (int, float)) else None


def evaluate(evaluator: Engine, epoch: int) -> None:
    """Run an evaluator: one of MONAI, or one of Ignite on the data it had last."""
    if getattr(evaluator, "data_loader", None) is not None:  # MONAI's bring their own
        evaluator.run(epoch)
    elif evaluator.state.dataloader is not None:
        data, length = evaluator.state.dataloader, evaluator.state.epoch_length
        evaluator.run(data, epoch_length=length)


def evaluator_of(engine: Engine) -> Engine | None:
    """Return the engine that a `ValidationHandler` of MONAI runs, if one is attached.

    Ignite 0.5 has no public view of what is attached to an engine.
    """
    attached = engine._event_handlers.values()  # noqa: SLF001 - see above
    handlers = (inspect.unwrap(one) for event in attached for one, *_ in event)
    validators = (getattr(handler, "validator", None) for handler in handlers)
    return next((one for one in validators if isinstance(one, Engine)), None)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Leave no trace in what training goes on with: random numbers, train modes."""
    modes = [(module, module.training) for module in network.modules()]
    devices = {one.device for one in network.parameters() if one.device.type == "cuda"}
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is others who use it
    try:
        with torch.random.fork_rng(sorted(device.index for device in devices)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002 - as above
        for module, training in modes:
            module.training = training
