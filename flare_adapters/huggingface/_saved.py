"""A round of the `Trainer` on disk: its own checkpoint, but for the model.

The Trainer saves a model for others to load.  Here it is what was trained, name by
name, of any model: of PEFT's methods one computes what it saves, and a parameter
thawed beside an adapter is in no PEFT file.  What FSDP shards, the Trainer saves beside
its optimizer.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import torch
from torch import nn
from transformers import TrainerControl
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from flare_adapters._torch import members
from flare_core import ConfigurationError

_WEIGHTS = "weights.pt"

Event: TypeAlias = Literal["on_step_end", "on_epoch_end"]


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank's loop knows beside the `TrainerState`.

    Attributes:
        event: Where it stood: callbacks behind ours have not heard of this event.
        control: The flags of its `TrainerControl`.
        loss: Sum of the losses since the last log.
        total_loss: Of those before.
        logged_at: The step of the last log.
        began_at: The step at which the training began.
        began_at_tokens: Input tokens seen at that time.
        grad_norm: Of the last step, for the log.
        learning_rate: Of the last step, for the log.
        epoch_random: The state of the random numbers when the epoch began, by which
            its data may be shuffled.
    """

    event: Event
    control: dict[str, bool]
    loss: float
    total_loss: float
    logged_at: int
    began_at: int
    began_at_tokens: int
    grad_norm: float | None
    learning_rate: float | None
    epoch_random: bytes


def save_round(
    trainer: Any,
    folder: Path,
    loop: Loop,
    *,
    control: TrainerControl,
    base: Collection[str],
) -> None:
    """Put what the training needs to go on into a folder, on all ranks.

    Args:
        trainer: In the middle of its training.
        folder: An empty one.
        loop: Of this rank.
        control: As the callback was given it.
        base: Names of the tensors that are as the script makes them.
    """
    trainer.store_flos()
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer._save_scaler(str(folder))
    _loop_file(trainer, folder).write_bytes(msgspec.msgpack.encode(loop))
    if not trainer.args.should_save:
        return
    if not trainer.is_fsdp_enabled:
        found = members(trainer.model)
        kept = {n: one.tensor.detach() for n, one in found.items() if n not in base}
        torch.save(kept, folder / _WEIGHTS)
    callbacks = [*exportable(trainer), control]
    state = dataclasses.replace(trainer.state, stateful_callbacks=callbacks)
    state.save_to_json(str(folder / TRAINER_STATE_NAME))


def read_loop(trainer: Any, folder: Path) -> Loop:
    """Return what was saved of this rank's loop.

    Raises:
        ConfigurationError: If it cannot be read.
    """
    path = _loop_file(trainer, folder)
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Loop)
    except (OSError, msgspec.DecodeError) as exc:
        msg = (
            f"round checkpoint {path}: {exc}; expected one of each of the "
            f"{trainer.args.world_size} ranks of this site; start as many as before, "
            f"or remove the folder {folder.parent} to begin anew"
        )
        raise ConfigurationError(msg) from exc


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the saved weights into a model, in place.

    Raises:
        ConfigurationError: If they are of another model.
    """
    found = members(model)
    path = folder / _WEIGHTS
    for name, kept in torch.load(path, "cpu", weights_only=True).items():
        if name not in found or found[name].tensor.shape != kept.shape:
            msg = (
                f"{path} has a tensor {name!r} of shape {tuple(kept.shape)}, the "
                "script's model has none: expected the model that was trained before; "
                f"to begin anew with another one, remove the folder {folder.parent}"
            )
            raise ConfigurationError(msg)
        found[name].tensor.copy_(kept)


def exportable(trainer: Any) -> list[Any]:
    """Return the callbacks that tell their state."""
    callbacks = trainer.callback_handler.callbacks
    return [one for one in callbacks if isinstance(one, ExportableState)]


def _loop_file(trainer: Any, folder: Path) -> Path:
    return folder / f"loop-{trainer.args.process_index}.msgpack"
