"""A site that dies is started again with the same command, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from adapters.scripts.ignite_site import net, train
from deployed import Deployment, deployment
from flare_core import (
    ModelState,
    Plan,
    Proposal,
    Schedule,
    Selection,
    Update,
    connect,
    site,
)
from site_scripts import WAIT_S

SCRIPT = Path(__file__).parent / "scripts" / "ignite_site.py"
INITIAL = {name: tensor.numpy() for name, tensor in net().state_dict().items()}
ENDS_S = 60
pytestmark = pytest.mark.timeout(300)  # a process loads torch and Ignite


class Played(NamedTuple):
    """What a run has left: its model's hash, and the script's notes and checkpoints."""

    blake3: str
    notes: list[str]
    models: dict[str, bytes]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture(scope="module")
def deployed(pool: ThreadPoolExecutor) -> Iterator[Deployment]:
    """A server that is stopped before the threads of the other site are waited for."""
    del pool
    with deployment() as deployed:
        deployed.member("a")
        deployed.member("b")
        yield deployed


def play_other(file: Path, schedule: Schedule) -> None:
    """Play the part of the other site, so that no global model is the local one."""
    link = connect(site(file))
    link.plan()
    model = link.join(Proposal(weights=ModelState(INITIAL), schedule=schedule))
    while not model.final:
        moved = {name: array + 0.25 for name, array in model.weights.items()}
        weights, number = ModelState(moved), model.round_number
        model = link.exchange(
            Update(site="b", round_number=number, weights=weights, num_examples=7)
        )
    link.leave({})


@contextmanager
def run_of(
    deployed: Deployment, pool: ThreadPoolExecutor, name: str, schedule: Schedule
) -> Iterator[Path]:
    """Play a run with the other site; give the site file of the one that is tested."""
    plan = Plan(rounds=5, schedule=schedule, selection=Selection(sites=2))
    deployed.create(name, plan)
    other = pool.submit(play_other, deployed.site("b", name), schedule)
    yield deployed.site("a", name)
    other.result(WAIT_S)


def played(deployed: Deployment, run: str, folder: Path) -> Played:
    info = deployed.ended(run)
    assert (info.state, info.error) == ("finished", "")
    models = {path.name: path.read_bytes() for path in (folder / "models").iterdir()}
    return Played(info.blake3, (folder / "log.jsonl").read_text().splitlines(), models)


@contextmanager
def started(file: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the script; the command is always the same."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, folder],
        env=os.environ | {"FLARE_SITE": str(file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def end_at(point: str, file: Path, folder: Path, signum: signal.Signals) -> str:
    """Start the script, end it where it comes to a point, return what it said."""
    (folder / "hold").write_text(point)
    with started(file, folder) as process:
        assert process.stdout is not None
        if process.stdout.readline() == "holds\n":
            process.send_signal(signum)
            _, said = process.communicate(timeout=ENDS_S)
            (folder / "hold").unlink()
            return said
        _, said = process.communicate(timeout=ENDS_S)
    msg = f"the script ended before {point}:\n{said}"
    raise AssertionError(msg)


@pytest.mark.parametrize(
    ("schedule", "points", "twice"),
    [
        (
            Schedule(every_n_epochs=1),
            [
                (
                    "iteration-3",
                    signal.SIGKILL,
                ),  # before there is anything to go on from
                ("iteration-8", signal.SIGKILL),  # in the middle of a round
                ("saved-12", signal.SIGKILL),  # nothing of the round has left
                ("epoch-3", signal.SIGKILL),  # the next global model was validated
                ("iteration-21", signal.SIGINT),
            ],
            [1, 2, 3, 7, 8, 18, 19, 20, 21],
        ),
    ],
)
def test_a_site_that_is_killed_goes_on_where_it_was(
    schedule: Schedule,
    points: Sequence[tuple[str, signal.Signals]],
    twice: Sequence[int],
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    quiet.mkdir()
    run.mkdir()
    name = f"every-{schedule.length}-{schedule.unit}"
    with run_of(deployed, pool, f"{name}.quiet", schedule) as file:
        train(quiet, site=file)
    expected = played(deployed, f"{name}.quiet", quiet)

    with run_of(deployed, pool, name, schedule) as file:
        for point, signum in points:
            end_at(point, file, run, signum)
        with started(file, run) as last:
            _, said = last.communicate(timeout=ENDS_S)

    found = played(deployed, name, run)
    assert last.returncode == 0, said
    assert "goes on after round" in said
    assert found.blake3 == expected.blake3
    assert list(dict.fromkeys(found.notes)) == expected.notes
    again = Counter(json.loads(one).get("iteration") for one in found.notes)
    assert [one for one, times in again.items() if one and times > 1] == list(twice)
    assert found.models == expected.models
    assert not list(file.parent.glob("checkpoint-*"))
