"""The last round that a site has trained, on its disk: what a restart goes on from."""

import os
import random
import shutil
from pathlib import Path
from typing import final

import msgspec
import numpy as np
import torch
from torch import Tensor

from flare_core import ConfigurationError, Metrics

_ROUND = "round.json"
_FORMAT = 2


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A round whose local training is over; its update may be in, or not.

    Attributes:
        run: The run's own name.
        plan: Fingerprint of the run's plan.
        round_number: The round.
        num_examples: Examples seen in it, on all ranks.
        num_steps: Optimizer steps taken in it.
        metrics: Of the local model.
        global_metrics: Of the global model that the round started from.
        format: Of this file.
    """

    run: str
    plan: str
    round_number: int
    num_examples: int
    num_steps: int
    metrics: Metrics
    global_metrics: Metrics
    format: int = _FORMAT


class _Random(msgspec.Struct, frozen=True, kw_only=True):
    """Where the generators of random numbers stand, in one process."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[str, bytes, int, int, float]
    torch: bytes
    cuda: tuple[bytes, ...]


@final
class RoundCheckpoint:
    """Keeps one round, the last one, whatever moment the process dies at.

    Args:
        folder: Where; it is made with the first round.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        """The folder of the round that is kept, with what the framework put there."""
        return self._folder / "round"

    def found(self, *, run: str, plan: str) -> Trained | None:
        """Return the round that an earlier process left; None if there is none.

        Raises:
            ConfigurationError: If what is there cannot be read.
        """
        before = self._folder / "before"
        if before.exists() and not self.path.exists():  # it died in between
            before.rename(self.path)
        path = self.path / _ROUND
        if not path.exists():
            return None
        try:
            trained = msgspec.json.decode(path.read_bytes(), type=Trained)
        except (OSError, msgspec.DecodeError) as exc:
            msg = (
                f"round checkpoint {path}: {exc}; remove the folder {self._folder} to "
                "train the round anew"
            )
            raise ConfigurationError(msg) from exc
        return trained if (trained.run, trained.plan) == (run, plan) else None

    def begin(self) -> Path:
        """Return an empty folder, for the framework to put its checkpoint into."""
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)
        return unfinished

    def finish(self, trained: Trained) -> None:
        """Keep what was put there instead of the round before."""
        unfinished, before = self._folder / "unfinished", self._folder / "before"
        (unfinished / _ROUND).write_bytes(msgspec.json.encode(trained))
        for path in [*unfinished.rglob("*"), unfinished]:
            _sync(path)
        shutil.rmtree(before, ignore_errors=True)
        if self.path.exists():
            self.path.rename(before)
        unfinished.rename(self.path)
        _sync(self._folder)
        shutil.rmtree(before, ignore_errors=True)

    def remove(self) -> None:
        """Remove it: the run is over."""
        shutil.rmtree(self._folder, ignore_errors=True)


def keep_random(path: Path) -> None:
    """Write down where this process's generators of random numbers stand."""
    path.write_bytes(random_state())


def restore_random(path: Path) -> None:
    """Set them back to where they stood."""
    set_random_state(path.read_bytes())


def random_state() -> bytes:
    """Return where this process's generators of random numbers stand."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state = _Random(
        python=(version, words, gauss),
        numpy=(
            str(name),
            np.asarray(keys).tobytes(),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        torch=torch.get_rng_state().numpy().tobytes(),
        cuda=tuple(one.numpy().tobytes() for one in _of_gpus()),
    )
    return msgspec.json.encode(state)


def set_random_state(found: bytes) -> None:
    """Set the generators back to where they stood."""
    state = msgspec.json.decode(found, type=_Random)
    name, keys, position, has_gauss, cached = state.numpy
    random.setstate(state.python)
    words = np.frombuffer(keys, np.uint32)
    np.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(_tensor(state.torch))
    # there may be fewer GPUs than before
    for number, one in zip(range(torch.cuda.device_count()), state.cuda, strict=False):
        torch.cuda.set_rng_state(_tensor(one), number)


def _of_gpus() -> list[Tensor]:
    """Return nothing where CUDA is not in use: a fork of this process may want it."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _tensor(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
