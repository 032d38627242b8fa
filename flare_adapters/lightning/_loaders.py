"""Where a fit stands in its data, and how another process gets there.

A loader draws the order of an epoch when its iterator is made.  Who makes it again with
the random numbers of that moment, and skips the batches that were seen, has the rest of
the epoch in the same order.  lightning 2.6 has no public hook at that moment.
"""

from collections.abc import Callable
from typing import Any, final

from lightning.pytorch import Trainer
from torch import Generator, Tensor

from flare_adapters._torch import random_state, set_random_state

_BY_ITSELF = "_DataLoaderIterDataFetcher"
"""Has the module fetch batches: nobody else knows how many are gone."""


@final
class EpochStart:
    """Notes the random numbers that the running epoch's order was drawn from.

    Args:
        trainer: Whose fit it is.

    Attributes:
        drawn: What was noted, as plain data and tensors; None before the first epoch.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.drawn: dict[str, Any] | None = None

    def fit_starts(self) -> None:
        """Look out for the first iterator, which Lightning makes before it trains."""
        _before_next(self._trainer.fit_loop, "_load_combined_loader_states", self._note)

    def epoch_starts(self) -> None:
        """Look out for the next one."""
        _before_next(self._trainer.fit_loop.epoch_loop, "on_run_start", self._note_new)

    def batch_ends(self) -> None:
        """Count a batch."""
        if self.drawn is not None:
            self.drawn["fetched"] = self._trainer.fit_loop._data_fetcher.fetched  # noqa: SLF001 - see above
            self.drawn["num_batches"] += 1

    def skip(self, fetcher: Any) -> None:
        """Draw the epoch's order again, and drop the batches that were seen."""
        assert self.drawn is not None  # noqa: S101 - `why_not` has said so
        set_random_state(self.drawn["random"].encode())
        set_generators(self._trainer, self.drawn["generators"])
        iter(fetcher)
        for _ in range(self.drawn["num_batches"]):
            next(fetcher)
        fetcher.fetched = self.drawn["fetched"]  # more, where the user has resumed

    def why_not(self) -> str:
        """Return why another process could not get here; nothing if it could."""
        fit_loop = self._trainer.fit_loop
        if type(fit_loop._data_fetcher).__name__ == _BY_ITSELF:  # noqa: SLF001 - as above
            return "training_step takes a dataloader_iter"
        num_loaders = len(fit_loop._combined_loader.flattened)  # noqa: SLF001 - as above
        if 0 < num_stateful(self._trainer) < num_loaders:
            return "some of its data loaders keep their own state and some do not"
        return "" if self.drawn is not None else "its epoch began in another fit"

    def _note_new(self) -> None:
        """Do as `_TrainingEpochLoop.on_run_start` does."""
        fit_loop = self._trainer.fit_loop
        resumes = fit_loop.is_resuming or fit_loop.epoch_loop.restarting
        if self._trainer.current_epoch > 0 and not resumes:
            self._note()

    def _note(self) -> None:
        self.drawn = {
            "random": random_state().decode(),
            "generators": generators(self._trainer),
            "num_batches": 0,
        }


def num_stateful(trainer: Trainer) -> int:
    """Return how many data loaders keep their own state, which Lightning saves."""
    loader = trainer.fit_loop._combined_loader  # noqa: SLF001 - see above
    return len(loader._state_dicts())  # noqa: SLF001 - see above


def generators(trainer: Trainer) -> list[Tensor]:
    """Return where the generators stand that were given to the data loaders."""
    return [one.get_state() for one in _generators(trainer)]


def set_generators(trainer: Trainer, states: list[Tensor]) -> None:
    """Set them back to where they stood."""
    for generator, state in zip(_generators(trainer), states, strict=False):
        generator.set_state(state.cpu())


def _generators(trainer: Trainer) -> list[Generator]:
    fit_loop = trainer.fit_loop
    combined = [fit_loop._combined_loader]  # noqa: SLF001 - see above
    combined += [fit_loop.epoch_loop.val_loop._combined_loader]  # noqa: SLF001 - as above
    found: list[Generator] = []
    for loader in (
        one for each in combined if each is not None for one in each.flattened
    ):
        batches = getattr(loader, "batch_sampler", None)
        sampler = getattr(loader, "sampler", None)
        for owner in (loader, sampler, batches, getattr(batches, "sampler", None)):
            one = getattr(owner, "generator", None)
            if isinstance(one, Generator) and one not in found:
                found.append(one)
    return found


def _before_next(owner: Any, name: str, act: Callable[[], None]) -> None:
    """Do something right before the next call of a method, once."""
    method = getattr(type(owner), name)

    def then(*args: Any, **kwargs: Any) -> Any:
        delattr(owner, name)
        act()
        return method(owner, *args, **kwargs)

    setattr(owner, name, then)
