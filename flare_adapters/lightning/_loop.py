"""The length of a Lightning fit, and what it validates."""

import math
from typing import Any

from lightning.pytorch import Trainer

from flare_adapters._torch import LocalSession


def horizon_of(trainer: Trainer) -> str:
    """Return what the fit is set to, in the user's words."""
    return f"Trainer(max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps})"


def fit_length_to(session: LocalSession, trainer: Trainer) -> None:
    """Set the length of the fit to that of the run.

    Call it in ``setup``: then ``estimated_stepping_batches`` and all LR schedules
    built from it see the real length.
    """
    by_steps = session.schedule.unit == "steps"
    trainer.fit_loop.max_epochs = -1 if by_steps else session.total_length
    trainer.fit_loop.epoch_loop.max_steps = session.total_length if by_steps else -1


def playable(session: LocalSession, trainer: Trainer) -> float:
    """Return the epochs or steps that the fit will run, as the schedule counts."""
    by_steps = session.schedule.unit == "steps"
    limit = trainer.max_steps if by_steps else trainer.max_epochs
    return math.inf if limit is None or limit < 0 else limit


def validation_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return what the validation that just ended has logged, and nothing older.

    ``trainer.callback_metrics`` also keeps what training logged; lightning 2.6 has no
    public view of one loop's results.
    """
    results = trainer._results  # noqa: SLF001 - see above
    return dict(results.metrics(on_step=False)["callback"]) if results else {}


def is_deepspeed(strategy: object) -> bool:
    """Tell whether DeepSpeed trains, in Lightning or in pytorch_lightning."""
    return any(one.__name__ == "DeepSpeedStrategy" for one in type(strategy).__mro__)
