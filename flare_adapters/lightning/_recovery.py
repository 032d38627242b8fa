"""Saves a round of a fit, and leads another process back to where it was saved.

A round ends while a training batch ends: the exchange comes before Lightning counts the
batch, validates, ends the epoch and saves.  The checkpoint is Lightning's own, of that
moment; what it leaves out lies beside it, for each rank.  A fit that goes on from it
restores both, and its first batch is the end of that one: the exchange, and then all
that follows it, in Lightning's own course.

lightning 2.6 would skip what follows, and has no public hook for any of this: all that
is private is in here, and in `_logs` and `_loaders`.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, final
from zipfile import is_zipfile

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from flare_adapters._torch import LocalSession
from flare_adapters.lightning._loaders import (
    EpochStart,
    generators,
    num_stateful,
    set_generators,
)
from flare_adapters.lightning._logs import log_again, logs
from flare_core import ConfigurationError, UnsupportedError

_CHECKPOINT = "lightning.ckpt"
_UNRELIABLE = "You're resuming from a checkpoint that ended before the epoch ended"
"""What Lightning warns of, as it does not find its place in a data loader again."""


@final
class Recovery:
    """What a fit saves of each round, and what it goes on from.

    Args:
        session: The site's part in the run.
        trainer: Whose fit it is.

    Attributes:
        start: The epochs and the steps that were played before the run began.
    """

    def __init__(self, session: LocalSession, trainer: Trainer) -> None:
        self._session = session
        self._trainer = trainer
        self._epoch = EpochStart(trainer)
        self._seeks = session.recovers and session.schedule.unit == "steps"
        self._here: dict[str, Any] | None = None
        self.start = (0, 0)
        if session.trained is not None:
            self._restore_from(session.trained_path)

    @property
    def resumes(self) -> bool:
        """Whether the fit goes on from a round that another process has trained."""
        return self._here is not None

    @property
    def resumes_at_epoch_end(self) -> bool:
        """Whether that round ended with an epoch."""
        return self._here is not None and self._here["batch"]["is_last_batch"]

    def lead_back(self, checkpoint: dict[str, Any]) -> None:
        """Have Lightning take the checkpoint for one of the middle of an epoch."""
        loops = checkpoint["loops"]["fit_loop"]
        batch, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        for part in ("current", "total"):
            ready = batch[part]["ready"]
            batch[part].update(started=ready, processed=ready, completed=ready)
            ready = epoch[part]["ready"]
            epoch[part].update(started=ready, processed=ready - 1, completed=ready - 1)

    def fit_starts(self) -> None:
        """Get ready, once the LR schedules are made."""
        if self._seeks:
            self._epoch.fit_starts()
        if self.resumes and self._trainer.max_steps != -1:
            self._trainer.fit_loop.epoch_loop.max_steps += 1  # else nothing is left

    def epoch_starts(self) -> None:
        """Note where the order of an epoch comes from."""
        if self._seeks:
            self._epoch.epoch_starts()

    def batch_ends(self) -> None:
        """Count a batch of the epoch."""
        self._epoch.batch_ends()

    def go_on(self, exchange: Callable[[], None]) -> None:
        """Let the fit's next batch be the end of the one that the round ended with.

        Args:
            exchange: Loads the next global model.
        """
        loop = self._trainer.fit_loop.epoch_loop
        warnings.filterwarnings("ignore", _UNRELIABLE)

        def advance(fetcher: Any) -> None:
            del loop.advance
            if loop.max_steps != -1:
                loop.max_steps -= 1
            self._end_batch(fetcher, exchange)

        loop.advance = advance

    def save(self, folder: Path) -> None:
        """Save the fit, on all ranks.

        Raises:
            UnsupportedError: If another process could not go on from here.
        """
        trainer, path = self._trainer, folder / _CHECKPOINT
        progress = trainer.fit_loop.epoch_loop.batch_progress
        why_not = "" if progress.is_last_batch else self._epoch.why_not()
        if why_not:
            raise UnsupportedError(why_not)
        connector = trainer._checkpoint_connector  # noqa: SLF001 - see above
        checkpoint = connector.dump_checkpoint(weights_only=False)
        _drop_settings(checkpoint, trainer)
        trainer.strategy.save_checkpoint(checkpoint, path)
        trainer.strategy.checkpoint_io.teardown()  # a writer in the background
        torch.save(self._rest(), self._rest_path(folder))
        trainer.strategy.barrier("round checkpoint")
        refused = _refused(path) if trainer.is_global_zero else ""
        refused = trainer.strategy.broadcast(refused)
        if refused:
            raise UnsupportedError(refused)

    def _rest(self) -> dict[str, Any]:
        fit_loop = self._trainer.fit_loop
        batch = fit_loop.epoch_loop.batch_progress
        epoch = fit_loop.epoch_progress.state_dict()
        cut_short = _cut_short(batch.current)
        for part in epoch.values() if cut_short else ():
            part["processed"] -= 1  # Lightning counts the epoch once more
        return {
            "start": list(self.start),
            "batch": batch.state_dict(),
            "epoch": epoch,
            "cut_short": cut_short,
            "generators": generators(self._trainer),
            "drawn": self._epoch.drawn,
            "logs": logs(self._trainer),
        }

    def _rest_path(self, folder: Path) -> Path:
        return folder / f"lightning-{self._trainer.global_rank}.pt"

    def _restore_from(self, folder: Path) -> None:
        """Read what is ours; have Lightning read what is its own."""
        path = self._rest_path(folder)
        device = self._trainer.strategy.root_device
        try:
            here = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError as exc:
            msg = (
                f"round checkpoint {path}: there is none for rank "
                f"{self._trainer.global_rank}; start as many processes as before, or "
                f"remove {folder} to train the round anew"
            )
            raise ConfigurationError(msg) from exc
        self._here = here
        self.start = (here["start"][0], here["start"][1])
        self._epoch.drawn = here["drawn"]
        connector = self._trainer._checkpoint_connector  # noqa: SLF001 - see above

        def resume_start(given: Any = None, *_: Any, **__: Any) -> None:
            del connector.resume_start
            if given:
                rank_zero_warn(
                    f"fit(ckpt_path={str(given)!r}) is not used: the fit goes on after "
                    "the last round that this site has trained"
                )
            connector.resume_start(folder / _CHECKPOINT, weights_only=True)

        connector.resume_start = resume_start

    def _end_batch(self, fetcher: Any, exchange: Callable[[], None]) -> None:
        """Do what remained of `_TrainingEpochLoop.advance` where it was saved.

        The hooks `on_train_batch_end` that came after ours are not called: their batch
        is gone.  Those that save do not look at it.
        """
        trainer, here = self._trainer, self._here
        assert here is not None  # noqa: S101 - the fit resumes
        self._here = None
        loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector  # noqa: SLF001 - see above
        trainer.fit_loop._restarting = False  # noqa: SLF001 - its setter says otherwise
        loop.restarting = False
        loop.batch_progress.load_state_dict(here["batch"])
        trainer.fit_loop.epoch_progress.load_state_dict(here["epoch"])
        if not loop.batch_progress.is_last_batch and not num_stateful(trainer):
            self._epoch.drawn = here["drawn"]
            self._epoch.skip(fetcher)
        set_generators(trainer, here["generators"])
        log_again(trainer, here["logs"])
        exchange()
        if here["cut_short"]:
            raise StopIteration
        for callback in trainer.checkpoint_callbacks:
            callback.on_train_batch_end(
                trainer, trainer.lightning_module, None, None, loop.batch_idx
            )
        connector.on_batch_end()
        loop.batch_progress.increment_completed()
        connector.update_train_step_metrics()


def _cut_short(batch: Any) -> bool:
    """Return whether no batch ends here: the module has cut the epoch short."""
    ends = batch.started == batch.ready and batch.completed < batch.processed
    return not ends


def _drop_settings(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Drop what the script passes again, and what may be of any type."""
    for owner in (trainer.lightning_module, trainer.datamodule):
        if owner is not None:
            for kind in ("KEY", "NAME", "TYPE"):
                name = getattr(owner, f"CHECKPOINT_HYPER_PARAMS_{kind}")
                checkpoint.pop(name, None)


def _refused(path: Path) -> str:
    """Return why a checkpoint would not be read again; nothing if it would."""
    if not is_zipfile(path):
        return ""  # no file of torch.save: shards, or a format of the script's own
    kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if not kinds:
        return ""
    return f"the script puts {', '.join(kinds)} into its checkpoints, no plain data"
