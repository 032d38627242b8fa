"""The job that all frameworks do, and what is measured of it.

A model of float32 numbers drawn from [0, 1), in tensors of 10 MB, shape (2500, 1000);
the empty one is one tensor of 10 floats.  In each round the first site adds 1 to what
it receives, the second 2, and so on, and hands it in with one example; the server
averages.  The first number of all starts as 0, so a site can tell in which round it is,
and a framework that did anything else than FedAvg is found out.  Random numbers, and
sites that differ, because Flower sends and keeps equal pieces once: of a model of zeros
it would send 5 MB, whatever its size.

Whenever a site has received a global model, its code appends a line to
``FOLDER/SITE.rounds``: the round from 0, CLOCK_MONOTONIC in nanoseconds, one element of
the model.  A round lasts from the moment that its model is at the last site to the
moment that the next one is.  That is written the same way in the code for every
framework, and holds all that repeats: training, upload, aggregation, waiting for a
poll, download.  Start-up and the first round are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import final

import msgspec

NOT_COUNTED = 2
"""The first round, and the last, whose end no site sees: its model is the final one."""
_TOLERANCE = 1e-3


class Model(StrEnum):
    """A size of model."""

    EMPTY = "empty"
    MB_100 = "100MB"
    MB_400 = "400MB"
    GB_1 = "1GB"


class Mode(StrEnum):
    """Whether all runs under a framework's simulator, or server and sites apart."""

    SIMULATED = "simulated"
    DEPLOYED = "deployed"


class RunFailedError(Exception):
    """A framework could not be installed or did not do the job; says why."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One federation.

    Attributes:
        model: Size of the model.
        mode: How it is run.
        sites: Sites in it; all take part in each round.
        counted: Rounds that are measured.
    """

    model: Model
    mode: Mode
    sites: int
    counted: int

    @property
    def rounds(self) -> int:
        """Rounds to play."""
        return self.counted + NOT_COUNTED

    @property
    def tensors(self) -> int:
        """Tensors of the model."""
        return {Model.MB_100: 10, Model.MB_400: 40, Model.GB_1: 100}.get(self.model, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of each tensor."""
        return (1, 10) if self.model is Model.EMPTY else (2500, 1000)

    @property
    def num_bytes(self) -> int:
        """Size of the model."""
        return 4 * self.tensors * self.shape[0] * self.shape[1]

    @property
    def settings(self) -> dict[str, int]:
        """What the code of each framework is told."""
        rows, columns = self.shape
        return {
            "sites": self.sites,
            "rounds": self.rounds,
            "tensors": self.tensors,
            "rows": rows,
            "columns": columns,
        }

    @property
    def options(self) -> list[str]:
        """The settings, as options of a command line."""
        return [f"--{key}={value}" for key, value in self.settings.items()]

    def __str__(self) -> str:
        return f"{self.model}, {self.sites} sites, {self.mode}"


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """A line of a site's notes: it has received the model of a round.

    Attributes:
        round_number: The round, from 0.
        at_ns: When, in nanoseconds of CLOCK_MONOTONIC.
        element: The first number of the model.
    """

    round_number: int
    at_ns: int
    element: float


@final
@dataclass(frozen=True, slots=True)
class Receipts:
    """What all sites have noted so far.

    Attributes:
        folder: Where they note it.
        job: The job they do.
    """

    folder: Path
    job: Job

    def count(self) -> int:
        """Return how many models were received."""
        return sum(len(notes) for notes in self._read().values())

    def complete(self) -> bool:
        """Return whether every site has received every model."""
        return self.count() >= self.job.sites * self.job.rounds

    def seconds(self) -> list[float]:
        """Return how long the counted rounds took.

        Raises:
            RunFailedError: If it was not the job that was done.
        """
        notes = self._read()
        if len(notes) != self.job.sites:
            msg = f"{len(notes)} sites took part, expected {self.job.sites}"
            raise RunFailedError(msg)
        for site, received in notes.items():
            _check(site, received, self.job)
        ends = [
            max(received[number].at_ns for received in notes.values())
            for number in range(1, self.job.rounds)
        ]
        return [(later - sooner) / 1e9 for sooner, later in pairwise(ends)]

    def _read(self) -> dict[str, list[Receipt]]:
        return {
            path.stem: [
                msgspec.convert(line.split(), Receipt, strict=False)
                for line in path.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]
            for path in self.folder.glob("*.rounds")
        }


def _check(site: str, received: Sequence[Receipt], job: Job) -> None:
    numbers = [receipt.round_number for receipt in received]
    if numbers != list(range(job.rounds)):
        msg = (
            f"{site} received models of rounds {numbers}, expected {job.rounds} rounds"
        )
        raise RunFailedError(msg)
    for receipt in received:
        expected = receipt.round_number * (job.sites + 1) / 2  # the mean of 1 to sites
        if abs(receipt.element - expected) > _TOLERANCE:
            msg = (
                f"{site} received a model that starts with {receipt.element} in round "
                f"{receipt.round_number}, expected {expected}: the updates were not "
                "averaged as in FedAvg"
            )
            raise RunFailedError(msg)
