"""The length of a training by the `Trainer`, and what it evaluates."""

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, has_length

from flare_adapters._torch import LocalSession

_NO_METRICS = ("_per_second", "_runtime", "_time", "epoch", "num_input_tokens_seen")


def horizon_of(args: TrainingArguments) -> str:
    """Return what the training is set to, in the user's words."""
    epochs, steps = args.num_train_epochs, args.max_steps
    return f"TrainingArguments(num_train_epochs={epochs:g}, max_steps={steps})"


def train_length_to(session: LocalSession, args: TrainingArguments) -> None:
    """Set the length of the training to that of the run.

    Call it before `train`: the schedule of the learning rate is built there.
    """
    if session.schedule.unit == "steps":
        args.max_steps = session.total_length
    else:
        args.num_train_epochs, args.max_steps = float(session.total_length), -1


def playable(
    session: LocalSession,
    args: TrainingArguments,
    state: TrainerState,
    dataloader: Any,
) -> float:
    """Return the epochs or steps that can be run, as the schedule counts.

    They are those that are left, and what a process before this one has trained.
    """
    steps = state.max_steps - state.global_step
    trained = 0 if session.trained is None else session.trained.round_number + 1
    played = trained * session.schedule.length
    if session.schedule.unit == "steps":
        return played + steps
    if not has_length(dataloader):
        return math.inf
    steps_an_epoch = math.ceil(len(dataloader) / args.gradient_accumulation_steps)
    return played + steps / max(steps_an_epoch, 1)


@final
class Untrained:
    """A model that no step changes: the `Trainer` takes one before it looks at `stop`.

    Args:
        model: It.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = (one for one in model.parameters() if one.requires_grad)
        self._tensors = [*trained, *model.buffers()]
        self._values = [one.detach().clone() for one in self._tensors]

    def put_back(self) -> None:
        """Undo what was done to it."""
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)


def evaluates(args: TrainingArguments) -> bool:
    """Return whether the user has anything evaluated during training."""
    return args.eval_strategy != IntervalStrategy.NO or args.eval_on_start


def evaluation_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the model, without those of the machine."""
    return {
        name: value for name, value in metrics.items() if not name.endswith(_NO_METRICS)
    }


def innermost(optimizer: Any) -> Optimizer:
    """Return the optimizer that steps, whatever accelerate has put around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
