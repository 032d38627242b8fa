"""The callback for Lightning: one `fit` plays every federated round."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flare_adapters._torch import LocalSession, num_examples, options
from flare_adapters.lightning._loop import (
    fit_length_to,
    grad_scale,
    horizon_of,
    playable,
    refuse_engine,
    validation_metrics,
)
from flare_adapters.lightning._recovery import Recovery
from flare_core import OptimizerState, Select
from flare_core import site as read_site


class FLCallback(Callback):
    """Exchanges weights at round boundaries, inside the running `Trainer.fit`.

    After the last optimizer step of a round, and before Lightning validates and
    saves, the site's weights go out and the next global model comes in: validation
    metrics, best-model choice and checkpoints are those of global models.  The run's
    plan sets the length of the fit before LR schedules are built.

    Args:
        site: The site file; by default the one that ``FLARE_SITE`` names.  With
            ``FLARE_SITE=off`` the callback does nothing at all.
        every_n_epochs: A round ends after so many epochs; 1 if nothing is said.
        every_n_steps: A round ends after so many optimizer steps
            (``trainer.global_step``).
        select: Which tensors are exchanged: ``"auto"`` (trainable ones where anything
            is frozen, else all), ``"all"``, ``"trainable"``, ``"no_batchnorm"``, or
            globs, where ``"!glob"`` takes out again.
        optimizer_state: Whether optimizers ``"keep"`` their state across rounds or
            ``"reset"`` it.

    Raises:
        ConfigurationError: If no federation is set up.
    """

    def __init__(
        self,
        site: str | PathLike[str] | None = None,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        select: Select = "auto",
        optimizer_state: OptimizerState = "keep",
    ) -> None:
        self._options = options(
            site, every_n_epochs, every_n_steps, select, optimizer_state
        )
        self._federated = read_site(site).federated
        self._session: LocalSession | None = None
        self._recovery: Recovery | None = None
        self._horizon = ""
        self._epoch_seen = -1
        self._cannot_count = False
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get the plan, and set the length of the fit to it."""
        del pl_module
        if stage != "fit" or not self._federated:
            return
        self._session = LocalSession(self._options)
        self._horizon = horizon_of(trainer)
        refuse_engine(self._session, trainer.strategy)
        self._recovery = Recovery(self._session, trainer)
        self._set_length(trainer)
        rank_zero_info(f"The plan sets the length: {horizon_of(trainer)}")
        _warn_of_local_stops(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Play all rounds after what the user's checkpoint has seen, not instead."""
        del pl_module
        if self._recovery is None:
            return
        if self._recovery.resumes:
            self._recovery.lead_back(checkpoint)
        else:
            epochs, steps = checkpoint["epoch"] + 1, checkpoint["global_step"]
            self._recovery.start = epochs, steps
            self._set_length(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready to save rounds, or to go on from one."""
        del trainer, pl_module
        if self._recovery is not None:
            self._recovery.fit_starts()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join, and load the first global model; or go on from the last round."""
        del pl_module
        if self._session is None or self._recovery is None:
            return
        self._hook(self._session, trainer)
        epochs, steps = trainer.current_epoch, trainer.global_step
        self._session.at_step(steps)
        if self._recovery.resumes:
            at_end = self._recovery.resumes_at_epoch_end
            self._epoch_seen = epochs if at_end else epochs - 1
            self._recovery.go_on(lambda: self._join(trainer))
        else:
            self._epoch_seen = epochs - 1
            self._recovery.start = epochs, steps
            self._set_length(trainer)
            self._join(trainer)

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Note where the epoch's order comes from."""
        del trainer, pl_module
        if self._recovery is not None:
            self._recovery.epoch_starts()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and exchange if the round is over."""
        del pl_module, batch_idx
        if self._session is None or self._recovery is None:
            return
        self._recovery.batch_ends()
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._session.saw(self._count(batch), loss)
        self._session.at_step(trainer.global_step)
        if trainer.is_last_batch:
            self._epoch_over(trainer)
        self._exchange_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch an epoch that the module cut short: it has no last batch."""
        del pl_module
        if self._session is not None and self._epoch_seen < trainer.current_epoch:
            self._epoch_over(trainer)
            self._exchange_when_due(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Correct the gradients, which are not clipped yet."""
        del pl_module
        if self._session is not None and self._session.corrects_gradients:
            scale = grad_scale(trainer, optimizer)
            self._session.adjust_gradients(optimizer, scale)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metrics, if it was the global model that was validated."""
        del pl_module
        if self._session is not None and not trainer.sanity_checking:
            self._session.evaluated(validation_metrics(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave; if the run is not over, say so."""
        del pl_module
        self._unhook()
        if self._session is not None:
            stopped = trainer.should_stop
            why = "was stopped (EarlyStopping, max_time, …)" if stopped else "ended"
            self._session.leave(f"its fit {why}")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the server, so that nobody waits for this site."""
        del trainer, pl_module
        self._unhook()
        if self._session is not None:
            self._session.fail(exception)

    def _hook(self, session: LocalSession, trainer: Trainer) -> None:
        """Learn of each step that is taken: mixed precision skips some."""

        def stepped(optimizer: Optimizer, *_: Any) -> None:
            session.stepped(optimizer)

        if session.corrects_gradients:
            self._hooks = [
                one.register_step_post_hook(stepped) for one in trainer.optimizers
            ]

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _set_length(self, trainer: Trainer) -> None:
        if self._session is None or self._recovery is None or trainer.fast_dev_run:
            return
        fit_length_to(self._session, trainer, self._recovery.start)

    def _join(self, trainer: Trainer) -> None:
        assert self._session is not None  # noqa: S101 - there is a run to join
        assert self._recovery is not None  # noqa: S101 - as above
        self._session.join(
            _model(trainer),
            playable=playable(self._session, trainer, self._recovery.start),
            horizon=self._horizon,
            optimizers=trainer.optimizers,
        )
        self._stop_if_final(trainer)

    def _count(self, batch: Any) -> int:
        found = num_examples(batch)
        if found is None and not self._cannot_count:
            self._cannot_count = True
            kind = type(batch).__name__
            rank_zero_warn(f"Cannot count the examples of a {kind}: each counts as one")
        return 1 if found is None else found

    def _epoch_over(self, trainer: Trainer) -> None:
        self._epoch_seen = trainer.current_epoch
        if self._session is not None:
            self._session.epoch_done()

    def _exchange_when_due(self, trainer: Trainer) -> None:
        if self._session is None or self._recovery is None or not self._session.due:
            return
        self._session.exchange(trainer.optimizers, save=self._recovery.save)
        self._stop_if_final(trainer)

    def _stop_if_final(self, trainer: Trainer) -> None:
        if self._session is not None and self._session.final:
            trainer.should_stop = True


def _model(trainer: Trainer) -> Any:
    return trainer.strategy.model or trainer.lightning_module


def _warn_of_local_stops(trainer: Trainer) -> None:
    callbacks = trainer.callbacks
    for callback in callbacks:
        if isinstance(callback, (EarlyStopping, Timer)):
            rank_zero_warn(
                f"{type(callback).__name__} ends this site alone; the run goes on "
                "with the others if its quorum allows, else it stops for all"
            )
