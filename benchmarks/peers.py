"""NVIDIA FLARE and Flower beside this library, on the very same jobs, in one run.

    python benchmarks/peers.py --json peers.json
    python benchmarks/peers.py --quick
    python benchmarks/peers.py --model 1GB --mode deployed --framework flower

It measures seconds a round and the memory of the server; what exactly, says
`_peers/_job.py` and `_peers/_run.py`.  Each peer is installed once, from the package
registry, into an environment of its own; what was chosen for it, and the code of its
job, stand in `_peers/_nvflare.py` and `_peers/_flower.py`.  Ours is the `flare_core` of
the interpreter that runs this file.

All that is started listens on 127.0.0.1 and ends with the run, however it ends.  A case
that fails is shown as failed, is not in the file, and makes the exit code 1; its
folder, with all logs, is kept.  The folders are in the system's temporary one, or that
which TMPDIR names.  Under Linux only: it reads /proc.
"""

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeAlias

import typer
from _peers import _environments, _flower, _nvflare, _ours
from _peers._job import Job, Mode, Model, RunFailedError
from _peers._processes import adopt_orphans, end_descendants
from _peers._run import Measurement, Run
from _report import JsonFile, Quick, Report

_MB = 1e6
_COUNTED = {Model.EMPTY: 10, Model.MB_100: 5, Model.MB_400: 5, Model.GB_1: 5}
_SITES: dict[Model, tuple[int, ...]] = {Model.GB_1: (2,)}
"""By default 2 and 8; 8 sites of 1 GB need more memory than most machines have."""


class Framework(StrEnum):
    """Who does the job."""

    OURS = "ours"
    NVFLARE = "nvflare"
    FLOWER = "flower"


_START: dict[Framework, Callable[[Run, Path], None]] = {
    Framework.OURS: _ours.start,
    Framework.NVFLARE: _nvflare.start,
    Framework.FLOWER: _flower.start,
}
_REQUIREMENTS = {
    Framework.NVFLARE: _environments.NVFLARE,
    Framework.FLOWER: _environments.FLOWER,
}

Models: TypeAlias = Annotated[
    list[Model] | None, typer.Option("--model", help="Sizes; by default all.")
]
Sites: TypeAlias = Annotated[
    list[int] | None, typer.Option(min=1, help="By default 2 and 8, and 2 with 1GB.")
]
Modes: TypeAlias = Annotated[
    list[Mode] | None, typer.Option("--mode", help="By default both.")
]
Frameworks: TypeAlias = Annotated[
    list[Framework] | None, typer.Option("--framework", help="By default all.")
]
Rounds: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Rounds to measure; by default 5 or 10.")
]
Environments: TypeAlias = Annotated[
    Path, typer.Option(file_okay=False, help="Where the peers are installed.")
]


def main(
    *,
    json_file: JsonFile = None,
    quick: Quick = False,
    model: Models = None,
    sites: Sites = None,
    mode: Modes = None,
    framework: Frameworks = None,
    rounds: Rounds = None,
    environments: Environments = _environments.default_folder(),  # noqa: B008
) -> None:
    """Measure rounds and memory of three frameworks on the same jobs.

    --quick is short for --model empty --model 100MB --sites 2 --mode simulated
    --rounds 2; the time to install the peers, once, comes on top.
    """
    adopt_orphans()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave)
    if quick:
        model = model or [Model.EMPTY, Model.MB_100]
        sites, mode, rounds = sites or [2], mode or [Mode.SIMULATED], rounds or 2
    report = Report("peers")
    try:
        ready = _install(framework or list(Framework), environments.resolve(), report)
        for job in _jobs(model or list(Model), sites, mode or list(Mode), rounds):
            _compare(job, ready, report)
    finally:
        end_descendants()
    report.finish(json_file)


def _leave(signum: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + signum)


def _install(
    frameworks: list[Framework], folder: Path, report: Report
) -> dict[Framework, Path]:
    """Return the environments of the frameworks that can be measured."""
    ready: dict[Framework, Path] = {}
    for framework in frameworks:
        requirements = _REQUIREMENTS.get(framework, ())
        environment = folder / framework
        try:
            if requirements and not _environments.is_ready(environment, requirements):
                report.say(f"installing {', '.join(requirements)} into {environment}")
                _environments.create(environment, requirements)
        except RunFailedError as error:
            report.fail(framework, str(error))
        else:
            ready[framework] = environment
            if requirements:
                report.machine[framework] = ", ".join(requirements)
    return ready


def _jobs(
    models: list[Model], sites: list[int] | None, modes: list[Mode], rounds: int | None
) -> Iterator[Job]:
    for model in models:
        for number in sites or _SITES.get(model, (2, 8)):
            for mode in modes:
                counted = rounds or _COUNTED[model]
                yield Job(model=model, mode=mode, sites=number, counted=counted)


def _compare(job: Job, ready: dict[Framework, Path], report: Report) -> None:
    """Measure a job with one framework after the other, and compare."""
    medians: dict[str, dict[Framework, float]] = {}
    for framework, environment in ready.items():
        case = f"{job}, {framework}"
        try:
            found = _measure(job, framework, environment)
        except RunFailedError as error:
            report.fail(case, str(error))
            continue
        for what, unit, samples in _rows(job, found):
            row = report.add(f"{case}: {what}", unit, samples)
            medians.setdefault(what, {})[framework] = row.median
    for what, numbers in medians.items():
        ours = numbers.pop(Framework.OURS, None)
        if ours is not None and numbers:
            ratio = min(numbers.values()) / ours
            report.add(f"{job}: {what}, the better peer's / ours", "times", [ratio])


def _rows(job: Job, found: Measurement) -> Iterator[tuple[str, str, list[float]]]:
    yield "round", "s", found.seconds
    unit = "MB" if job.model is Model.EMPTY else "models"
    size = _MB if job.model is Model.EMPTY else job.num_bytes
    yield "server memory, resident", unit, [found.resident_bytes / size]
    yield "server memory, anonymous", unit, [found.anonymous_bytes / size]


def _measure(job: Job, framework: Framework, environment: Path) -> Measurement:
    """Run a job; its folder is kept if it fails."""
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        with Run(job, folder) as run:
            _START[framework](run, environment)
            found = run.measure()
    except RunFailedError as error:
        msg = f"{error}; logs: {folder}"
        raise RunFailedError(msg) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return found


if __name__ == "__main__":
    typer.run(main)
