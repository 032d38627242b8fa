"""How long an empty round takes: a model of 10 floats, no training.

    python benchmarks/turnaround.py --json turnaround.json
    python benchmarks/turnaround.py --quick

The server and each site are processes of their own, on 127.0.0.1.  A round lasts from
the end of the one before to its own, on the server's clock.  Of it, the pause is from
the last update until the next model can be sent: averaging, and writing the file.  The
first rounds are not counted.  On a busy machine, the server's CPU tells more.

Targets: below 10 ms with 2 sites, below 60 ms with 64.
"""

from itertools import pairwise

import typer
from _federation import (
    SITE_BYTES,
    FailedError,
    Federation,
    Model,
    federation,
    leave_when_told,
    need,
)
from _report import JsonFile, Quick, Report

import flare_core as flare

_MODEL = Model(num_bytes=40, num_tensors=1)
_NOT_COUNTED = 5
_COUNTED = {2: 200, 8: 200, 64: 100, 256: 50}
_QUICK = (2, 8, 64)


def main(*, json_file: JsonFile = None, quick: Quick = False) -> None:
    """Measure the rounds; --quick leaves out the most sites."""
    leave_when_told()
    report = Report("turnaround")
    for sites in _QUICK if quick else _COUNTED:
        try:
            running = _played(sites)
        except FailedError as error:
            report.fail(f"{sites} sites", str(error))
            continue
        columns = {
            "round": _steps(running.played),
            "the server's CPU of it": _steps(running.cpu),
            "pause of it": running.pauses[_NOT_COUNTED:],
        }
        for what, seconds in columns.items():
            milliseconds = [1e3 * one for one in seconds]
            report.add(f"{sites} sites: {what}", "ms", milliseconds)
    report.finish(json_file)


def _steps(moments: list[float]) -> list[float]:
    """Return how long each counted round took, by when each round was over."""
    counted = moments[_NOT_COUNTED - 1 :]
    return [end - begin for begin, end in pairwise(counted)]


def _played(sites: int) -> Federation:
    """Return a federation that has played all rounds."""
    need(sites * SITE_BYTES)
    plan = flare.Plan(
        rounds=_COUNTED[sites] + _NOT_COUNTED, selection=flare.Selection(sites=sites)
    )
    with federation(plan) as running:
        running.start_sites(sites, _MODEL)
        running.finish()
    return running


if __name__ == "__main__":
    typer.run(main)
