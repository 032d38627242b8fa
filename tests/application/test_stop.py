"""Which global model is the best, and runs that end before their rounds are played."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import pytest
from blake3 import blake3

import flare_core as flare
from flare_core import Metrics, Plan, Selection, Stop
from flare_core.application import (
    Best,
    BestFound,
    EndsEarly,
    Event,
    Published,
    Result,
    RoundPlayed,
    RoundRecord,
)
from flare_core.application._course import Course
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from site_scripts import WAIT_S
from support import RunningServer, RunServer, SiteFile

_LARGE, _SMALL = 50_000, 3
_ROUNDS = 10


@final
class _Files:
    """An observer that reads each model that is the best."""

    def __init__(self) -> None:
        self.hashes: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, BestFound):
            self.hashes.append(blake3(event.path.read_bytes()).hexdigest())


def _play(file: Path, size: int, scores: list[float], num_examples: int) -> int:
    """Play as a site that says so of one model after the other; return the last one."""
    w = np.zeros(size, np.float32)
    with flare.join({"w": w}, site=file) as client:
        for current in client:
            current.submit(
                {"w": current.weights["w"] + 1},
                num_examples=num_examples,
                global_metrics={"loss": scores[current.number]},
            )
        last = int(client.weights["w"][0])
        client.report({"loss": scores[last]})
    return last


def _end(
    server: RunningServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    sites: list[tuple[list[float], int]],
    size: int,
) -> Result:
    lasts = [
        pool.submit(_play, site_file(name, server.endpoint), size, scores, n)
        for name, (scores, n) in zip("ab", sites, strict=True)
    ]
    result = server.result()
    assert {last.result(WAIT_S) for last in lasts} == {result.rounds}
    return result


def _hashes(server: RunningServer) -> list[str]:
    return [one.blake3 for one in server.told(Published)]


@pytest.mark.parametrize("size", [_LARGE, _SMALL])
def test_a_run_ends_with_the_round_whose_model_has_reached_the_target(
    size: int,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = _Files()
    stop = Stop(metric="loss", target=2.5)
    server = run_server(
        Plan(rounds=_ROUNDS, selection=Selection(sites=2), stop=stop), observer=files
    )
    a, b = [4.0, 3.0, 2.0, 2.0], [4.0, 2.0, 4.0, 3.0]  # (3 a + b) / 4: 4, 2.75, 2.5

    result = _end(server, site_file, pool, [(a, 3), (b, 1)], size)

    assert (result.rounds, result.error) == (3, "")
    assert result.stopped == "loss is 2.5, and the target 2.5"
    records = server.told(RoundPlayed)
    assert [one.record.global_metrics["loss"] for one in records] == [4, 2.75, 2.5]
    finals = [one.final for one in server.told(Published)]
    assert finals == [False, False, False, True]
    (early,) = server.told(EndsEarly)
    assert early == EndsEarly(3, result.stopped)
    assert result.best is not None
    assert result.best.number == 3  # the final model is better still: 2.25
    assert files.hashes == _hashes(server)
    for site in "ab":
        told = f"site {site!r}: the server says: the run ends after 3 rounds: loss is"
        assert told in caplog.text


def test_a_run_ends_when_patience_is_over_and_its_best_model_is_kept(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    files = _Files()
    stop = Stop(metric="loss", patience=2)
    server = run_server(
        Plan(rounds=_ROUNDS, selection=Selection(sites=2), stop=stop), observer=files
    )
    scores = [4.0, 3.0, 3.5, 3.2, 3.1]

    result = _end(server, site_file, pool, [(scores, 3), (scores, 1)], _LARGE)

    assert result.rounds == 4
    assert result.stopped.startswith("2 models, one after the other, were not better")
    best = result.best
    assert best is not None
    assert (best.number, best.metric, best.value) == (1, "loss", 3.0)
    assert best.blake3 == _hashes(server)[1]
    assert files.hashes == _hashes(server)[:2]
    assert result.blake3 == _hashes(server)[-1]


def test_a_run_is_over_when_the_file_of_its_best_model_is_there(tmp_path: Path) -> None:
    disk, told, ends = threading.Event(), list[Event](), list[Result]()
    spool = Spool(tmp_path / "spool")
    spool.make()
    model = tmp_path / "model"
    model.write_bytes(b"the best")
    worker = Worker(_deliver, num_threads=1)
    stop = Stop(metric="loss")
    course = Course(Plan(rounds=1, stop=stop), spool, worker, told.append)
    course.opened(model)
    course.hashed(0, "its hash")
    worker.do_aside(partial(disk.wait, WAIT_S))  # a slow one

    course.played(_record(0, {"loss": 2.0}))
    course.hashed(1, "that of the final one")
    course.end(Result(rounds=1, metrics={"loss": 3.0}), ends.append)

    assert (told, ends) == ([], [])
    disk.set()
    worker.close()
    best = Best(number=0, metric="loss", value=2.0, blake3="its hash")
    assert told == [BestFound(best, spool.best(0))]
    assert spool.best(0).read_bytes() == b"the best"
    assert [one.best for one in ends] == [best]


def _deliver(result: Callable[[], object]) -> None:
    result()


def _record(number: int, global_metrics: Metrics) -> RoundRecord:
    return RoundRecord(
        round=number,
        cohort=("a",),
        sites={},
        num_examples=1,
        global_metrics=global_metrics,
        metrics={},
        bytes_down=0,
        bytes_up=0,
        error_down=0.0,
        seconds=0.0,
        blake3="",
    )


@pytest.mark.parametrize("patience", [None, 1])
def test_a_run_whose_rounds_are_all_played_has_a_best_model_too(
    patience: int | None,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    stop = Stop(metric="loss", mode="max", patience=patience)
    server = run_server(Plan(rounds=3, selection=Selection(sites=2), stop=stop))
    scores = [1.0, 2.0, 1.5, 1.7]

    result = _end(server, site_file, pool, [(scores, 3), (scores, 1)], _LARGE)

    assert result.rounds == 3
    assert result.stopped == ""
    assert result.best is not None
    assert (result.best.number, result.best.value) == (1, 2.0)
    assert not any(isinstance(one, EndsEarly) for one in server.events)


def test_a_metric_that_nobody_reports_is_named_once(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop = Stop(metric="los", patience=1)
    server = run_server(Plan(rounds=4, selection=Selection(sites=2), stop=stop))
    scores = [1.0] * 5

    result = _end(server, site_file, pool, [(scores, 3), (scores, 1)], _SMALL)

    assert (result.rounds, result.best, result.stopped) == (4, None, "")
    said = "stop.metric = 'los': no site has reported it of a global model up to "
    assert re.findall(f"{said}.*", caplog.text) == [f"{said}round 1; they report loss"]
