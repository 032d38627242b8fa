"""Which of the runs that await a site start now, by what it itself declares; pure.

A run is served in the order in which the runs were made.  Where the oldest one that
waits needs more GPUs than are free, those that are free are kept for it: so what needs
many is not starved by what needs few.  What needs none goes on beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, final

from flare_core._errors import PolicyError
from flare_core._site import Binding, Site
from flare_core.application import check_run
from flare_core.management._wording import counted

Gpus: TypeAlias = tuple[str, ...]
Why: TypeAlias = Literal["policy", "not bound", "over", "slot", "gpus"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run's command is to be started.

    Attributes:
        run: The run's name.
        glob: What bound it.
        binding: What to start.
        gpus: The devices that it gets.
    """

    run: str
    glob: str
    binding: Binding
    gpus: Gpus = ()


@final
@dataclass(frozen=True, slots=True)
class Hold:
    """A run's command is not to be started, or not yet.

    Attributes:
        run: The run's name.
        why: The rule.
        words: The same, for people.
        rule: Of the site's policy, if that forbids it.
    """

    run: str
    why: Why
    words: str
    rule: str = ""


Decision: TypeAlias = Start | Hold


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of a run's command.

    Attributes:
        binding: As it was then; another one is tried anew.
        times: How often it was started.
        failed: Whether it did not end well, the last time.
        words: How it ended, such as ``"ended with code 1"``.
    """

    binding: Binding
    times: int
    failed: bool
    words: str


def schedule(
    site: Site,
    awaiting: Sequence[str],
    *,
    running: Mapping[str, Gpus],
    tried: Mapping[str, Tried],
) -> list[Decision]:
    """Decide on each run that awaits the site and is not running.

    Args:
        site: Its policy, resources and bindings count.
        awaiting: The runs that await it, the oldest first.
        running: Those whose command runs, with the GPUs that it has.
        tried: Those whose command has run.
    """
    free = _Free(site, running)
    return [
        _decide(site, run, tried.get(run), free)
        for run in dict.fromkeys(awaiting)
        if run not in running
    ]


def bound(site: Site, run: str) -> tuple[str, Binding] | None:
    """Return what a site binds to a run, with its glob; None if nothing.

    The name itself goes before all globs, then the longest glob that fits; of two that
    are equally long the one that stands first.
    """
    fitting = [glob for glob in site.runs if glob == run or fnmatchcase(run, glob)]
    if not fitting:
        return None
    best = max(fitting, key=lambda glob: (glob == run, len(glob)))
    return best, site.runs[best]


@final
class _Free:
    """What is left of a site's resources while runs are decided on, one by one."""

    def __init__(self, site: Site, running: Mapping[str, Gpus]) -> None:
        taken = {gpu for gpus in running.values() for gpu in gpus}
        self._site = site
        self._slots = site.resources.concurrent_runs - len(running)
        self._gpus = [gpu for gpu in site.resources.gpus if gpu not in taken]
        self._kept_for = ""

    def give(self, run: str, glob: str, binding: Binding) -> Decision:
        """Give a run what it needs, or say what it waits for."""
        if self._slots <= 0:
            most = self._site.resources.concurrent_runs
            words = f"waits for a free slot: resources.concurrent_runs is {most}"
            return Hold(run, "slot", words)
        if binding.gpus > len(self._gpus) or (binding.gpus and self._kept_for):
            words = f"waits for {counted(binding.gpus, 'GPU')}: {self._what_is_free()}"
            self._kept_for = self._kept_for or run
            return Hold(run, "gpus", words)
        gpus, self._gpus = self._gpus[: binding.gpus], self._gpus[binding.gpus :]
        self._slots -= 1
        return Start(run=run, glob=glob, binding=binding, gpus=tuple(gpus))

    def _what_is_free(self) -> str:
        free = f"{len(self._gpus)} of {len(self._site.resources.gpus)} free"
        kept = f", kept for run {self._kept_for}" if self._kept_for else ""
        return free + kept


def _decide(site: Site, run: str, tried: Tried | None, free: _Free) -> Decision:
    try:
        check_run(site, run)
    except PolicyError as exc:
        return Hold(run, "policy", f"is not started: {exc}", exc.violation.rule)
    found = bound(site, run)
    if found is None:
        words = (
            f"awaits this site, and {site.file} binds no command to it; to have one "
            f'started add:  [runs."{run}"]  command = ["train.py"]'
        )
        return Hold(run, "not bound", words)
    glob, binding = found
    if tried is not None and tried.binding == binding and not _again(tried):
        words = (
            f"still awaits this site, but its command {tried.words}, and is not "
            f'started again; change runs."{glob}" in {site.file}, whose restarts is '
            f"{binding.restarts}, or start the command yourself with "
            f"`flare run --run {run}`"
        )
        return Hold(run, "over", words)
    return free.give(run, glob, binding)


def _again(tried: Tried) -> bool:
    return tried.failed and tried.times <= tried.binding.restarts
