"""The commands that an agent runs, and what became of those it ran."""

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

from flare_core._errors import ConfigurationError
from flare_core._site import Site
from flare_core.management._bound_process import log_of_run, start_bound
from flare_core.management._diary import Diary
from flare_core.management._processes import SiteProcess, end, in_words
from flare_core.management._scheduler import Gpus, Start, Tried

_GRACE_S = 5.0
"""How long a command may take to end politely."""


@final
@dataclass(frozen=True, slots=True)
class _Job:
    """A command that runs."""

    start: Start
    process: SiteProcess
    since: float


@final
class Jobs:
    """Starts commands and takes note of their ends; for one thread.

    Args:
        diary: Told of both.
        wake: Called when there is an end to take note of, from any thread.

    Attributes:
        tried: What became of those that have ended, by run.
    """

    def __init__(self, diary: Diary, wake: Callable[[], None]) -> None:
        self.tried: dict[str, Tried] = {}
        self._diary = diary
        self._wake = wake
        self._jobs: dict[str, _Job] = {}
        self._ends: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    @property
    def running(self) -> Mapping[str, Gpus]:
        """The runs whose command runs, with its GPUs."""
        return {run: job.start.gpus for run, job in self._jobs.items()}

    def start(self, site: Site, start: Start) -> None:
        """Start a command; one that cannot be started has failed.

        Raises:
            ConfigurationError: If it cannot be written down, and so was not tried.
        """
        run, gpus = start.run, start.gpus
        words = list(start.binding.command)
        self._diary.will("command started", run, command=words, gpus=list(gpus))
        try:
            process = start_bound(site, start, partial(self._ended, run))
        except ConfigurationError as exc:
            self._diary.did("command ended", run, error=str(exc))
            self._diary.say(f"run {run}: {exc}")
            self._remember(start, failed=True, words="could not be started")
            return
        self._jobs[run] = _Job(start, process, time.monotonic())
        given = f", GPUs {','.join(gpus)}" if gpus else ""
        log = log_of_run(site, run)
        self._diary.say(f"run {run}: started, pid {process.pid}{given}, log {log}")

    def reap(self) -> list[str]:
        """Take note of the commands that have ended; return their runs."""
        runs: list[str] = []
        while not self._ends.empty():
            run, code = self._ends.get()
            job = self._jobs[run]
            end([job.process], grace_s=_GRACE_S)  # what it left behind has its GPUs
            del self._jobs[run]
            self._diary.did("command ended", run, code=code)
            seconds = time.monotonic() - job.since
            self._diary.say(f"run {run}: {in_words(code)} after {seconds:.0f} s")
            self._remember(job.start, failed=code != 0, words=in_words(code))
            runs.append(run)
        return runs

    def end(self) -> None:
        """End all commands: politely, and after 5 seconds for sure."""
        if self._jobs:
            self._diary.say(f"ending {', '.join(self._jobs)}")
        end([job.process for job in self._jobs.values()], grace_s=_GRACE_S)
        self.reap()

    def _ended(self, run: str, code: int) -> None:
        """Note the end of a process; on a thread that waits for it."""
        self._ends.put((run, code))
        self._wake()

    def _remember(self, start: Start, *, failed: bool, words: str) -> None:
        before = self.tried.get(start.run)
        same = before is not None and before.binding == start.binding
        times = 1 + (before.times if before is not None and same else 0)
        self.tried[start.run] = Tried(
            binding=start.binding, times=times, failed=failed, words=words
        )
