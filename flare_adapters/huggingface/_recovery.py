"""A round of the `Trainer` on disk, and its loop taken up where a round had ended.

The Trainer resumes between two steps.  But a round ends within one, in a callback,
before the Trainer logs, evaluates and saves: what was left of that moment is played
first.  Then the Trainer's own resuming skips the batches of the epoch that were seen.
"""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import msgspec
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, __version__
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from flare_adapters._torch import (
    LocalSession,
    members,
    random_state,
    set_random_state,
)
from flare_core import ConfigurationError

_log = logging.getLogger(__name__)
_WEIGHTS = "weights.pt"
_NEEDED = ("_get_grad_norm", "_init_training_state", "_prepare_for_training", "_run_epoch")
"""Parts of the Trainer's loop, which was one function before transformers 5."""

Event: TypeAlias = Literal["on_step_end", "on_epoch_end"]


class _Loop(msgspec.Struct, frozen=True, kw_only=True):
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
        epoch_random: The random numbers' state when the epoch began, which may have
            shuffled the data.
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


@final
class Recovery:
    """Saves the rounds of one `train`, and has it go on after a round saved earlier.

    Args:
        trainer: Whose `train` is about to begin.
        callback: The one that exchanges; it stands among the trainer's.
        session: The callback's.
    """

    def __init__(
        self, trainer: Trainer, callback: TrainerCallback, session: LocalSession
    ) -> None:
        self._trainer: Any = trainer
        self._callback = callback
        self._session = session
        self._last: dict[str, Any] = {}
        self._epoch_random = b""
        self._folder = Path()
        self._loop: _Loop | None = None
        self._until_restored = ExitStack()
        if session.trained is not None:
            self._folder = session.trained_path
            self._loop = msgspec.msgpack.decode(
                (self._folder / self._loop_file).read_bytes(), type=_Loop
            )

    def resume_from(self, given: str | bool | None) -> str | bool | None:
        """Return what the Trainer is to resume from: the saved round, if there is one.

        Args:
            given: What the script says.
        """
        if self._loop is None:
            return given
        if given:
            _log.warning(
                "resume_from_checkpoint=%r is left aside: this site has trained later "
                "rounds of its run, and goes on from %s",
                given,
                self._folder,
            )
        return str(self._folder)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Keep an eye on the Trainer while it trains."""
        trainer = self._trainer
        methods = {
            name: self._noting(name, getattr(trainer, name))
            for name in ("_get_grad_norm", "_get_learning_rate")
        }
        with ExitStack() as stack:
            if self._loop is not None:
                # the evaluation of the round is still to come, and is no second one
                ours = {"eval_on_start": False}
                # callbacks are restored here, where they stand
                ours["restore_callback_states_from_checkpoint"] = False
                self._until_restored.enter_context(_replaced(trainer.args, ours))
                stack.push(self._until_restored)
                methods |= {
                    "_init_training_state": self._where(trainer._init_training_state),
                    "_run_epoch": self._going_on(trainer._run_epoch),
                }
                if not trainer.is_fsdp_enabled:
                    methods["_load_from_checkpoint"] = self._load_weights
            stack.enter_context(_replaced(trainer, methods))
            yield

    def epoch_begins(self) -> None:
        """Note what the data of the epoch may be shuffled by."""
        self._epoch_random = random_state()

    def save(self, folder: Path, *, event: Event, control: TrainerControl) -> None:
        """Put what the training needs to go on into a folder, on all ranks."""
        trainer, model = self._trainer, self._trainer.model
        trainer.store_flos()
        trainer._save_optimizer_and_scheduler(str(folder))
        trainer._save_scaler(str(folder))
        loop = _Loop(
            event=event,
            control=control.state()["args"],
            loss=float(trainer._tr_loss),
            total_loss=trainer._total_loss_scalar,
            logged_at=trainer._globalstep_last_logged,
            began_at=trainer._initial_global_step,
            began_at_tokens=int(trainer._initial_num_input_tokens_seen),
            grad_norm=_number(self._last.get("_get_grad_norm")),
            learning_rate=_number(self._last.get("_get_learning_rate")),
            epoch_random=self._epoch_random,
        )
        (folder / self._loop_file).write_bytes(msgspec.msgpack.encode(loop))
        if not trainer.args.should_save:
            return
        if not trainer.is_fsdp_enabled:  # which is saved beside its optimizer
            weights = {
                name: one.tensor.detach()
                for name, one in members(model).items()
                if name not in self._session.base
            }
            torch.save(weights, folder / _WEIGHTS)
        exportable = [*self._exportable(), control]
        state = dataclasses.replace(trainer.state, stateful_callbacks=exportable)
        state.save_to_json(str(folder / TRAINER_STATE_NAME))

    @property
    def _loop_file(self) -> str:
        return f"loop-{self._trainer.args.process_index}.msgpack"

    def _exportable(self) -> list[Any]:
        callbacks = self._trainer.callback_handler.callbacks
        return [one for one in callbacks if isinstance(one, ExportableState)]

    def _noting(self, name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, with what it returns noted: the log's, unknown to hooks."""

        @wraps(ask)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._last[name] = ask(*args, **kwargs)
            return self._last[name]

        return noting

    @torch.no_grad()
    def _load_weights(self, _: str, model: Any = None) -> None:
        """Stand for `_load_from_checkpoint`, which knows less of what was trained."""
        found = members(self._trainer.model if model is None else model)
        path = self._folder / _WEIGHTS
        for name, kept in torch.load(path, "cpu", weights_only=True).items():
            if name not in found or found[name].tensor.shape != kept.shape:
                msg = (
                    f"{path} has a tensor {name!r} of shape {tuple(kept.shape)}, the "
                    "script's model has none: expected the model that was trained "
                    "before; to begin the run anew, remove the folder "
                    f"{self._folder.parent}"
                )
                raise ConfigurationError(msg)
            found[name].tensor.copy_(kept)

    def _where(self, init_training_state: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, which says where to go on: in the epoch of the round."""

        @wraps(init_training_state)
        def where(*args: Any, **kwargs: Any) -> tuple[int, int]:
            init_training_state(*args, **kwargs)
            self._restore_callbacks()
            return math.ceil(self._trainer.state.epoch) - 1, 0

        return where

    def _restore_callbacks(self) -> None:
        for name, states in self._trainer.state.stateful_callbacks.items():
            found = [one for one in self._exportable() if type(one).__name__ == name]
            states = states if isinstance(states, list) else [states]
            for callback, state in zip(found, states, strict=False):
                for attribute, value in state["attributes"].items():
                    setattr(callback, attribute, value)

    def _going_on(self, run_epoch: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, whose first call takes up an epoch where it was left."""

        @wraps(run_epoch)
        def going_on(**about: Any) -> None:
            loop, self._loop = self._loop, None
            if loop is None:
                run_epoch(**about)
                return
            self._restore(loop)
            self._end_moment(loop.event, about)
            if loop.event == "on_step_end":
                self._end_epoch(loop, run_epoch, about)

        return going_on

    def _restore(self, loop: _Loop) -> None:
        self._until_restored.close()
        trainer = self._trainer
        trainer._tr_loss.fill_(loop.loss)
        trainer._total_loss_scalar = loop.total_loss
        trainer._globalstep_last_logged = loop.logged_at
        trainer._initial_global_step = loop.began_at
        trainer._initial_num_input_tokens_seen = loop.began_at_tokens
        vars(trainer.control).update(loop.control)
        self._last = {
            "_get_grad_norm": loop.grad_norm,
            "_get_learning_rate": loop.learning_rate,
        }

    def _end_moment(self, event: Event, about: dict[str, Any]) -> None:
        """Play the rest of an event, from our callback on, and what follows it."""
        everybody = self._trainer.callback_handler
        others = copy.copy(everybody)
        others.callbacks = everybody.callbacks[
            everybody.callbacks.index(self._callback) :
        ]
        self._tell(others, event, about)

    def _end_epoch(
        self, loop: _Loop, run_epoch: Callable[..., Any], about: dict[str, Any]
    ) -> None:
        """Train what is left of the epoch."""
        trainer = self._trainer
        epoch, control = trainer.state.epoch, trainer.control
        stopped = control.should_epoch_stop or control.should_training_stop
        if stopped or float(epoch).is_integer():
            self._tell(trainer.callback_handler, "on_epoch_end", about)
            return
        if not trainer.args.ignore_data_skip:
            seen = round((epoch - about["epoch"]) * about["steps_in_epoch"])
            about["steps_trained_in_current_epoch"] = seen
            # the Trainer loads it when it has skipped what was seen
            trainer._save_rng_state(str(self._folder))
            set_random_state(loop.epoch_random)
        self._epoch_random = loop.epoch_random
        run_epoch(**about)

    def _tell(self, handler: Any, event: Event, about: dict[str, Any]) -> None:
        trainer = self._trainer
        act = {
            "on_step_end": handler.on_step_end,
            "on_epoch_end": handler.on_epoch_end,
        }[event]
        trainer.control = act(trainer.args, trainer.state, trainer.control)
        trainer._maybe_log_save_evaluate(
            trainer._tr_loss,
            self._last["_get_grad_norm"],
            about["model"],
            about["trial"],
            about["epoch"],
            about["ignore_keys_for_eval"],
            about["start_time"],
            learning_rate=self._last["_get_learning_rate"],
        )


def saves_rounds() -> bool:
    """Return whether this version of the Trainer can go on within an epoch."""
    missing = [name for name in _NEEDED if not callable(getattr(Trainer, name, None))]
    if missing:
        _log.warning(
            "the Trainer of transformers %s has no %s, so that rounds are not saved: "
            "if this site is started again, its script begins anew",
            __version__,
            ", ".join(missing),
        )
    return not missing


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


@contextmanager
def _replaced(of: object, attributes: dict[str, Any]) -> Generator[None]:
    """Lend an object other attributes of its own."""
    before = {name: value for name, value in vars(of).items() if name in attributes}
    vars(of).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(of)[name]
        vars(of).update(before)
