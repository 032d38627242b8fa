"""The loop of the `Trainer`, taken up where a round had ended.

The Trainer resumes between two steps.  But a round ends within one, in a callback,
before the Trainer logs, evaluates and saves: so what was left of that moment is played
first.  Then the Trainer, as ever when it resumes, skips what was seen of the epoch.
"""

import copy
import logging
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, final

from transformers import Trainer, TrainerCallback, TrainerControl, __version__

from flare_adapters._torch import LocalSession, random_state, set_random_state
from flare_adapters.huggingface._residual import add_residual
from flare_adapters.huggingface._saved import (
    Event,
    Loop,
    exportable,
    load_weights,
    read_loop,
    save_round,
)

_log = logging.getLogger(__name__)
_GRAD_NORM, _RATE = "_get_grad_norm", "_get_learning_rate"
"""What the Trainer logs and shows to no callback, by the methods that return it."""
_NEEDED = (_GRAD_NORM, _RATE, "_init_training_state", "_run_epoch")
"""Parts of the Trainer's loop, which was one method before transformers 5."""
_AS_RESUMED = {
    "eval_on_start": False,  # the evaluation after the round is still to come
    "restore_callback_states_from_checkpoint": False,  # by new ones, in other places
}


@final
class Recovery:
    """Saves the rounds of one `train`, and has it go on after a round saved before.

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
        self._until_restored = ExitStack()
        self._loop: Loop | None = None
        if session.trained is not None:
            add_residual(trainer.model, session.plan.lora)  # saved with the weights
            self._loop = read_loop(trainer, session.trained_path)

    def resume_from(self, given: Any) -> Any:
        """Return what the Trainer is to resume from: a saved round, if there is one.

        Args:
            given: What the script says.
        """
        if self._loop is None:
            return given
        path = str(self._session.trained_path)
        if given:
            _log.warning(
                "resume_from_checkpoint=%r is left aside: this site goes on after the "
                "round that it has trained, from %s",
                given,
                path,
            )
        return path

    @contextmanager
    def watching(self) -> Generator[None]:
        """Be told by the Trainer, while it trains, what it tells no callback."""
        trainer = self._trainer
        methods = {
            _GRAD_NORM: self._noting(_GRAD_NORM, trainer._get_grad_norm),
            _RATE: self._noting(_RATE, trainer._get_learning_rate),
        }
        with self._until_restored, ExitStack() as stack:
            if self._loop is not None:
                self._until_restored.enter_context(_lent(trainer.args, _AS_RESUMED))
                methods |= {
                    "_init_training_state": self._where(trainer._init_training_state),
                    "_run_epoch": self._going_on(trainer._run_epoch),
                }
                if not trainer.is_fsdp_enabled:
                    methods["_load_from_checkpoint"] = self._load_weights
            stack.enter_context(_lent(trainer, methods))
            yield

    def epoch_begins(self) -> None:
        """Note by what the data of the epoch may be shuffled."""
        self._epoch_random = random_state()

    def save(self, folder: Path, *, event: Event, control: TrainerControl) -> None:
        """Save the round that ends with an event, on all ranks."""
        trainer = self._trainer
        loop = Loop(
            event=event,
            control=control.state()["args"],
            loss=float(trainer._tr_loss),
            total_loss=trainer._total_loss_scalar,
            logged_at=trainer._globalstep_last_logged,
            # for a clock only, and not there in transformers 5.17
            began_at=getattr(trainer, "_initial_global_step", 0),
            began_at_tokens=int(trainer._initial_num_input_tokens_seen),
            grad_norm=_number(self._last.get(_GRAD_NORM)),
            learning_rate=_number(self._last.get(_RATE)),
            epoch_random=self._epoch_random,
        )
        base = self._session.base
        save_round(trainer, folder, loop, control=control, base=base)

    def _noting(self, name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method, with what it returns noted."""

        @wraps(ask)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._last[name] = ask(*args, **kwargs)
            return self._last[name]

        return noting

    def _load_weights(self, folder: str) -> None:
        load_weights(self._trainer.model, Path(folder))

    def _where(self, init_training_state: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that says where to go on: in the epoch of the round."""

        @wraps(init_training_state)
        def where(*args: Any, **kwargs: Any) -> tuple[int, int]:
            init_training_state(*args, **kwargs)
            self._restore_callbacks()
            return math.ceil(self._trainer.state.epoch) - 1, 0

        return where

    def _restore_callbacks(self) -> None:
        for name, saved in self._trainer.state.stateful_callbacks.items():
            found = [
                one for one in exportable(self._trainer) if type(one).__name__ == name
            ]
            states = saved if isinstance(saved, list) else [saved]
            for callback, state in zip(found, states, strict=False):
                for attribute, value in state["attributes"].items():
                    setattr(callback, attribute, value)

    def _going_on(self, run_epoch: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method whose first call takes up an epoch where it was left."""

        @wraps(run_epoch)
        def going_on(**about: Any) -> None:
            loop, self._loop = self._loop, None
            if loop is None:
                run_epoch(**about)
                return
            self._restore(loop)
            everybody = self._trainer.callback_handler
            place = everybody.callbacks.index(self._callback)
            others = copy.copy(everybody)
            others.callbacks = everybody.callbacks[place:]
            self._tell(others, loop.event, about)
            if loop.event == "on_step_end":
                self._end_epoch(loop, run_epoch, about)

        return going_on

    def _restore(self, loop: Loop) -> None:
        self._until_restored.close()
        trainer = self._trainer
        trainer._tr_loss.fill_(loop.loss)
        trainer._total_loss_scalar = loop.total_loss
        trainer._globalstep_last_logged = loop.logged_at
        trainer._initial_global_step = loop.began_at
        trainer._initial_num_input_tokens_seen = loop.began_at_tokens
        vars(trainer.control).update(loop.control)
        self._last = {_GRAD_NORM: loop.grad_norm, _RATE: loop.learning_rate}

    def _end_epoch(
        self, loop: Loop, run_epoch: Callable[..., Any], about: dict[str, Any]
    ) -> None:
        """Train on to the end of the epoch, unless it is there."""
        trainer = self._trainer
        epoch, control = trainer.state.epoch, trainer.control
        stopped = control.should_epoch_stop or control.should_training_stop
        if stopped or float(epoch).is_integer():
            self._tell(trainer.callback_handler, "on_epoch_end", about)
            return
        if not trainer.args.ignore_data_skip:
            seen = round((epoch - about["epoch"]) * about["steps_in_epoch"])
            about["steps_trained_in_current_epoch"] = seen
            # loaded by the Trainer when it has skipped them, in their order
            trainer._save_rng_state(about["resume_from_checkpoint"])
            set_random_state(loop.epoch_random)
        self._epoch_random = loop.epoch_random
        run_epoch(**about)

    def _tell(self, handler: Any, event: Event, about: dict[str, Any]) -> None:
        """Tell callbacks of an event, and do what the Trainer does after it."""
        trainer = self._trainer
        trainer.control = handler.call_event(
            event, trainer.args, trainer.state, trainer.control
        )
        trainer._maybe_log_save_evaluate(
            trainer._tr_loss,
            self._last[_GRAD_NORM],
            about["model"],
            about["trial"],
            about["epoch"],
            about["ignore_keys_for_eval"],
            about["start_time"],
            learning_rate=self._last[_RATE],
        )


def saves_rounds() -> bool:
    """Return whether this version of the Trainer can go on within an epoch."""
    missing = [name for name in _NEEDED if name not in vars(Trainer)]
    if missing:
        _log.warning(
            "the Trainer of transformers %s has no %s, so that no round is saved: if "
            "this site is started again, its script begins anew",
            __version__,
            ", ".join(missing),
        )
    return not missing


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


@contextmanager
def _lent(to: object, attributes: dict[str, Any]) -> Generator[None]:
    """Give an object other attributes of its own, for a while."""
    before = {name: value for name, value in vars(to).items() if name in attributes}
    vars(to).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(to)[name]
        vars(to).update(before)
