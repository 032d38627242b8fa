"""How much memory a server and a site take, as a multiple of the model.

    python benchmarks/memory.py --json memory.json
    python benchmarks/memory.py --quick

A model of 400 MB in float32, 3 rounds without training, the server and each site in
processes of their own.  Anonymous is what no file could give back to the kernel: the
most of RssAnon and RssShmem in /proc, looked at 100 times a second.  The server's
resident memory, VmHWM, has the pages of the run's files too, which the kernel may drop
at any time.  Of what a site takes, one model is the one that it trains.

32 such sites would not fit most machines.  They are lean instead: they share one model,
mapped from a file, and keep no global model; to the server they are the same.

Targets: the server takes at most 2.1 models, and the same for 2, 8 and 32 sites within
10 %.
"""

from collections import defaultdict
from typing import Annotated, TypeAlias, final

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
from _peers._processes import memory_of
from _report import JsonFile, Quick, Report

import flare_core as flare

_UNIT = "x model"
_MB = 1_000_000
_ROUNDS = 3
_LOOK_S = 0.01
_LOOKS_PER_SITE = 10
"""A site's memory is at its peak for long, and there are many."""
_CASES = ((2, False), (8, False), (32, True))
_QUICK_CASES = _CASES[:2]
_SITE_MODELS = 3
"""Its own, the global model, and the next one while it arrives."""
_LEAN_MODELS = 1

Megabytes: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Size of the model; by default 400.")
]


@final
class _Peaks:
    """The most memory that was seen of a federation's processes.

    Args:
        running: The federation; no site has been started.

    Attributes:
        first: Anonymous bytes of the server now.
        anonymous: Anonymous bytes of each process.
        resident: Resident bytes of the server.
    """

    def __init__(self, running: Federation) -> None:
        self._running = running
        self._looks = 0
        self.anonymous: dict[int, int] = defaultdict(int)
        self.resident = 0
        self._look_at_server()
        self.first = self.server

    @property
    def server(self) -> int:
        return self.anonymous[self._running.server_pid]

    @property
    def sites(self) -> list[int]:
        return [self.anonymous[pid] for pid in self._running.site_pids]

    def look(self) -> None:
        self._look_at_server()
        if self._looks % _LOOKS_PER_SITE == 0:
            need(0)
            for pid in self._running.site_pids:
                self._look_at(pid)
        self._looks += 1

    def _look_at_server(self) -> None:
        found = self._look_at(self._running.server_pid)
        self.resident = max(self.resident, found.get("VmHWM", 0))

    def _look_at(self, pid: int) -> dict[str, int]:
        found = memory_of(pid)
        anonymous = found.get("RssAnon", 0) + found.get("RssShmem", 0)
        self.anonymous[pid] = max(self.anonymous[pid], anonymous)
        return found


def main(
    *, json_file: JsonFile = None, quick: Quick = False, megabytes: Megabytes = None
) -> None:
    """Measure both; --quick takes 40 MB, where Python itself shows, and 2 and 8."""
    leave_when_told()
    report = Report("memory")
    size = megabytes or (40 if quick else 400)
    servers: list[float] = []
    for sites, lean in _QUICK_CASES if quick else _CASES:
        case = f"{size} MB, {sites} {'lean ' if lean else ''}sites"
        try:
            peaks = _measure(sites, Model(num_bytes=size * _MB), lean=lean)
        except FailedError as error:
            report.fail(case, str(error))
            continue
        servers.append(_add(report, case, peaks, size * _MB))
    if len(servers) > 1:
        spread = [max(servers) / min(servers)]
        report.add("server, anonymous: most / least of these", "times", spread)
    report.finish(json_file)


def _add(report: Report, case: str, peaks: _Peaks, num_bytes: int) -> float:
    """Add the rows of a case, and return the server's anonymous memory."""
    peak = peaks.server / num_bytes
    report.add(f"{case}: server, anonymous", _UNIT, [peak])
    report.add(f"{case}: of it before the first site", _UNIT, [peaks.first / num_bytes])
    report.add(f"{case}: server, resident", _UNIT, [peaks.resident / num_bytes])
    sites = [peak / num_bytes for peak in peaks.sites]
    report.add(f"{case}: site, anonymous", _UNIT, sites)
    return peak


def _measure(sites: int, model: Model, *, lean: bool) -> _Peaks:
    models = _LEAN_MODELS if lean else _SITE_MODELS
    need(sites * (models * model.num_bytes + SITE_BYTES))
    plan = flare.Plan(rounds=_ROUNDS, selection=flare.Selection(sites=sites))
    with federation(plan) as running:
        peaks = _Peaks(running)
        running.start_sites(sites, model, lean=lean)
        running.finish(peaks.look, _LOOK_S)
    return peaks


if __name__ == "__main__":
    typer.run(main)
