"""`Trainer.train`, told by an `FLCallback` where to go on.

A callback never sees the Trainer, and is called for the first time when the Trainer
has read what to resume from: so the method itself asks for the callback.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from flare_adapters.huggingface._callback import FLCallback


def recovering(train: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Trainer.train`, going on after the last round that was saved.

    A Trainer without an `FLCallback` trains as ever.
    """

    @wraps(train)
    def recovered(
        self: Any,
        resume_from_checkpoint: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        callbacks = self.callback_handler.callbacks
        ours = [one for one in callbacks if isinstance(one, FLCallback)]
        recovery = ours[0].recovery(self) if ours else None
        if recovery is None:
            return train(self, resume_from_checkpoint, *args, **kwargs)
        with recovery.watching():
            where = recovery.resume_from(resume_from_checkpoint)
            return train(self, where, *args, **kwargs)

    return recovered
