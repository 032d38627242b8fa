"""The length of a Lightning fit, and what it validates."""

import math
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from flare_adapters._torch import LocalSession, refuse_deepspeed
from flare_core import UnsupportedError


def horizon_of(trainer: Trainer) -> str:
    """Return what the fit is set to, in the user's words."""
    return f"Trainer(max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps})"


def fit_length_to(
    session: LocalSession, trainer: Trainer, start: tuple[int, int]
) -> None:
    """Set the length of the fit to that of the run.

    Call it in ``setup``: then ``estimated_stepping_batches`` and all LR schedules
    built from it see the real length.

    Args:
        session: The site's part in the run.
        trainer: Whose fit it is.
        start: The epochs and the steps that were played before the run began, by an
            earlier fit.
    """
    epochs, steps = start
    by_steps = session.schedule.unit == "steps"
    total = session.total_length
    trainer.fit_loop.max_epochs = -1 if by_steps else epochs + total
    trainer.fit_loop.epoch_loop.max_steps = steps + total if by_steps else -1
    # a run that ends early, or did without this site, ends here too
    trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None


def playable(session: LocalSession, trainer: Trainer, start: tuple[int, int]) -> float:
    """Return the epochs or steps that the fit runs from there, as the schedule counts.

    Args:
        session: The site's part in the run.
        trainer: Whose fit it is.
        start: As for `fit_length_to`.
    """
    by_steps = session.schedule.unit == "steps"
    limit = trainer.max_steps if by_steps else trainer.max_epochs
    done = start[1] if by_steps else start[0]
    return math.inf if limit is None or limit < 0 else limit - done


def validation_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return what the validation that just ended has logged, and nothing older.

    ``trainer.callback_metrics`` also keeps what training logged; lightning 2.6 has no
    public view of one loop's results.
    """
    results = trainer._results  # noqa: SLF001 - see above
    return dict(results.metrics(on_step=False)["callback"]) if results else {}


def refuse_engine(session: LocalSession, strategy: object) -> None:
    """Raise if the Lightning strategy hides the weights, also pytorch_lightning's.

    Raises:
        UnsupportedError: If it does.
    """
    names = {one.__name__ for one in type(strategy).__mro__}
    if "DeepSpeedStrategy" in names:
        refuse_deepspeed(session.plan.local)
    if "FSDPStrategy" in names:
        msg = (
            "FSDPStrategy flattens parameters (FSDP version 1): expected "
            "ModelParallelStrategy with fully_shard (version 2), or DDP"
        )
        raise UnsupportedError(msg)


def grad_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return what the gradients are multiplied by right before a step.

    With automatic mixed precision in float16, an optimizer that unscales gradients by
    itself (``fused=True``) has not done so yet.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    by_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and by_itself else 1.0
