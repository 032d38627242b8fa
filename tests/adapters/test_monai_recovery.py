"""A site that dies is started again with the same command, and nothing is lost."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import pytest
import torch
from ignite.engine import DeterministicEngine, Engine, Events

from adapters.scripts.ignite_site import net, rows, train
from adapters.sites import proposed
from deployed import Deployment, deployment
from flare_core import (
    Local,
    ModelState,
    Plain,
    Plan,
    Proposal,
    Scaffold,
    Schedule,
    Selection,
    Update,
    connect,
    site,
)
from site_scripts import WAIT_S

SCRIPT = Path(__file__).parent / "scripts" / "ignite_site.py"
INITIAL = {name: tensor.numpy() for name, tensor in net().state_dict().items()}
NUMBERS = itertools.count()
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
    """A server that is stopped before the threads of the other site are waited for.

    It has a process of its own: what it locks is not for the workers of a loader.
    """
    del pool
    with deployment(process=True) as deployed:
        deployed.member("a")
        deployed.member("b")
        yield deployed


def play_other(file: Path, schedule: Schedule) -> None:
    """Play the part of the other site, so that no global model is the local one."""
    link = connect(site(file))
    weights = proposed(INITIAL, link.plan())
    classes = weights.layout.classes
    model = link.join(Proposal(weights=weights, schedule=schedule))
    while not model.final:
        moved = {name: array + 0.25 for name, array in model.weights.items()}
        weights, number = ModelState(moved, classes=classes), model.round_number
        model = link.exchange(
            Update(site="b", round_number=number, weights=weights, num_examples=7)
        )
    link.leave({})


@final
class Runs:
    """Runs of one site, which a test plays, or of two.

    Args:
        deployed: The server.
        pool: For the other site.
        folder: For what the script writes.
    """

    def __init__(
        self, deployed: Deployment, pool: ThreadPoolExecutor, folder: Path
    ) -> None:
        self._deployed = deployed
        self._pool = pool
        self._folder = folder

    def play(
        self, name: str, plan: Plan, site_of_the_test: Callable[[Path, Path], object]
    ) -> Played:
        """Play a run, and return what it has left.

        Args:
            name: What its name begins with.
            plan: Its plan.
            site_of_the_test: Plays its part, by its site file and in a folder.
        """
        name = f"{name}-{next(NUMBERS)}"
        folder = self._folder / name
        folder.mkdir()
        self._deployed.create(name, plan)
        others = []
        if plan.selection.sites > 1:
            file = self._deployed.site("b", name)
            others.append(self._pool.submit(play_other, file, plan.schedule))
        try:
            site_of_the_test(self._deployed.site("a", name), folder)
        except BaseException:
            self._deployed.end(name)  # so that the other site waits no longer
            raise
        for other in others:
            other.result(WAIT_S)
        return self._played(name, folder)

    def _played(self, name: str, folder: Path) -> Played:
        info = self._deployed.ended(name)
        assert (info.state, info.error) == ("finished", "")
        assert not list((self._deployed.path / "a").glob(f"checkpoint-a-{name}"))
        models = {
            path.name: path.read_bytes() for path in (folder / "models").iterdir()
        }
        notes = (folder / "log.jsonl").read_text().splitlines()
        return Played(info.blake3, notes, models)


@pytest.fixture
def runs(deployed: Deployment, pool: ThreadPoolExecutor, tmp_path: Path) -> Runs:
    return Runs(deployed, pool, tmp_path)


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


def undisturbed(file: Path, folder: Path) -> None:
    train(folder, site=file)


class BrokenError(Exception):
    """What ends a training."""


def cut_epochs_short(engine: Engine) -> None:
    """End each epoch in the middle."""

    @engine.on(Events.ITERATION_COMPLETED(every=5))
    def cut(engine: Engine) -> None:
        engine.terminate_epoch()


def endless() -> Iterator[Any]:
    """Give batches in an order that nothing else draws numbers for."""
    loader = rows(generator=torch.Generator().manual_seed(5))
    while True:
        yield from loader


def breaking(iteration: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that break an iteration."""
    others = settings.get("prepare", lambda _: None)

    def fail() -> None:
        raise BrokenError

    def prepare(engine: Engine) -> None:
        others(engine)
        engine.add_event_handler(Events.ITERATION_STARTED(once=iteration), fail)

    return {**settings, "prepare": prepare}


def iterations_twice(notes: Sequence[str]) -> list[int]:
    """Return the iterations that were noted more than once."""
    noted = Counter(json.loads(note).get("iteration", 0) for note in notes)
    return sorted(number for number, times in noted.items() if number and times > 1)


KILLED_IN_EPOCHS = [
    ("iteration-3", signal.SIGKILL),  # before there is anything to go on from
    ("iteration-8", signal.SIGKILL),  # in the middle of a round
    ("saved-12", signal.SIGKILL),  # when a round is saved, and nothing of it has left
    ("epoch-3", signal.SIGKILL),  # when the next global model has been validated
    ("iteration-21", signal.SIGINT),
]
KILLED_IN_STEPS = [
    ("iteration-6", signal.SIGKILL),  # in an epoch's middle, as the round before ended
    ("saved-20", signal.SIGKILL),  # when all is trained
]
KILLED_LATE = [("iteration-14", signal.SIGKILL)]  # when a site has a control


@pytest.mark.parametrize(
    ("schedule", "local", "ends", "twice"),
    [
        (
            Schedule(every_n_epochs=1),
            Plain(),
            KILLED_IN_EPOCHS,
            # with the ends of rounds, which are played again by handlers
            [1, 2, 3, 6, 7, 8, 18, 19, 20, 21],
        ),
        (Schedule(every_n_steps=1), Plain(), KILLED_IN_STEPS, [4, 5, 6]),
        (Schedule(every_n_steps=1), Scaffold(), KILLED_LATE, [12, 13, 14]),
    ],
    ids=["epochs", "steps", "scaffold"],
)
def test_a_site_that_is_killed_goes_on_where_it_was(
    schedule: Schedule,
    local: Local,
    ends: Sequence[tuple[str, signal.Signals]],
    twice: Sequence[int],
    runs: Runs,
) -> None:
    plan = Plan(rounds=5, schedule=schedule, local=local, selection=Selection(sites=2))
    said = []

    def killed(file: Path, folder: Path) -> None:
        for point, signum in ends:
            end_at(point, file, folder, signum)
        with started(file, folder) as last:
            said.append(last.communicate(timeout=ENDS_S)[1])

    quiet = runs.play(f"quiet-{schedule.unit}", plan, undisturbed)
    found = runs.play(f"killed-{schedule.unit}", plan, killed)

    assert found.blake3 == quiet.blake3
    assert list(dict.fromkeys(found.notes)) == quiet.notes
    assert iterations_twice(found.notes) == list(twice)
    assert found.models == quiet.models
    assert said[0].count("goes on after round") == 1


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({"kind": DeterministicEngine}, "steps"),
        ({"data": lambda: rows(num_workers=2)}, "steps"),
        ({"data": lambda: rows(0, num_workers=1, persistent_workers=True)}, "epochs"),
        ({"data": lambda: rows(generator=torch.Generator().manual_seed(5))}, "steps"),
        ({"data": endless, "epoch_length": 5}, "epochs"),
        ({"epoch_length": 4}, "steps"),
        ({"prepare": cut_epochs_short}, "steps"),
    ],
    ids=[
        "deterministic",
        "workers",
        "persistent-workers",
        "generator",
        "endless",
        "epoch-length",
        "short-epochs",
    ],
)
def test_whatever_the_data_come_from_they_go_on_where_they_were(
    settings: dict[str, Any], unit: str, runs: Runs
) -> None:
    every = {"every_n_epochs": 1} if unit == "epochs" else {"every_n_steps": 1}
    plan = Plan(
        rounds=4,
        schedule=Schedule(**every),
        optimizer_state="reset",
    )

    def broken(file: Path, folder: Path) -> None:
        for number in (9, 14):
            with pytest.raises(BrokenError):
                train(folder, site=file, **breaking(number, settings))
        train(folder, site=file, **settings)

    quiet = runs.play("quiet", plan, lambda f, d: train(d, site=f, **settings))
    found = runs.play("broken", plan, broken)

    assert found.blake3 == quiet.blake3
    assert list(dict.fromkeys(found.notes)) == quiet.notes
