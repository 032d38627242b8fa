"""Hugging Face: a `Trainer` gets the callback when it begins to train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from flare_adapters._unchanged._part import take


def federate_trainer(trainer_module: ModuleType) -> None:
    """Let the first `train` of a script take part.

    ``DEFAULT_CALLBACKS`` would do it when a `Trainer` is made, which is too early: it
    may only evaluate, or be given an `FLCallback` by ``add_callback``.

    Args:
        trainer_module: ``transformers.trainer``, just imported.
    """
    trainer = trainer_module.Trainer
    trainer.train = _taking_part(trainer.train)


def _taking_part(train: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(train)
    def taking_part(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not take("This Trainer.train"):
            return train(self, *args, **kwargs)
        with _callback_in(self):
            from flare_adapters.huggingface._train import recovering  # noqa: PLC0415

            return recovering(train)(self, *args, **kwargs)

    return taking_part


@contextmanager
def _callback_in(trainer: Any) -> Iterator[None]:
    """Lend the Trainer a callback, as if it had been made with it."""
    from flare_adapters.huggingface import FLCallback  # noqa: PLC0415 - not before

    settings, callback = trainer.args, FLCallback()
    length = settings.num_train_epochs, settings.max_steps
    # The place that DEFAULT_CALLBACKS would give it: before the user's own.
    trainer.callback_handler.callbacks.insert(1, callback)
    try:
        callback.on_init_end(settings, trainer.state, trainer.control)
        yield
    finally:
        trainer.remove_callback(callback)
        settings.num_train_epochs, settings.max_steps = length
