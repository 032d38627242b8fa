"""What cannot be written costs no run, and no other one, whatever moment it is at."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

import flare_core as flare
from deployed import Deployment, deployment
from flare_core import RequestDeniedError
from flare_core.communication import Committed, Start, pack
from site_scripts import WAIT_S, Local, add, model, plan, play

_LAYOUT = flare.ModelState(model(0)).layout


@pytest.fixture
def deployed() -> Iterator[Deployment]:
    with deployment(patience_s=1.0) as deployed:
        for name in "ab":
            deployed.member(name)
        yield deployed


def _in_the_way(deployed: Deployment, file: str) -> Path:
    """Make a folder where a file of the run is to be written."""
    path = deployed.folder.runs / "demo" / f".{file}.unfinished"
    path.mkdir(parents=True)
    return path


def test_a_run_whose_end_cannot_be_written_down_ends_once_it_can(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.create("demo", plan(sites=1))
    result = _in_the_way(deployed, "result.json")
    opened = _in_the_way(deployed, "plan.toml")
    a = pool.submit(play, deployed.site("a", "demo"), model(0), add(1))
    assert a.result(WAIT_S)["w"].tolist() == [1]

    deployed.audited(
        "paused", why=f"IsADirectoryError: [Errno 21] Is a directory: '{result}'"
    )
    result.rmdir()
    deployed.audited(
        "paused",
        why="ConfigurationError: cannot go on with run 'demo': [Errno 21] Is a "
        f"directory: '{opened}'",
    )
    opened.rmdir()

    info = deployed.ended("demo")
    assert (info.state, info.rounds, info.error) == ("finished", 1, "")
    deployed.stop()
    assert not (deployed.folder.runs / "demo" / "spool").exists()
    deployed.start()


def test_a_run_that_cannot_be_made_is_no_run(deployed: Deployment) -> None:
    opened = _in_the_way(deployed, "plan.toml")
    with pytest.raises(RequestDeniedError, match="Is a directory"):
        deployed.create("demo", plan(sites=1))

    with pytest.raises(RequestDeniedError, match="no run is called 'demo'"):
        deployed.info("demo")
    opened.rmdir()
    deployed.create("demo", plan(sites=1))
    assert deployed.info("demo").state == "waiting"


def test_a_site_that_dies_while_a_run_is_halted_is_waited_for_no_longer_than_else(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    deployed.create("demo", plan(rounds=2, quorum=1))
    may_go = threading.Event()

    def held(current: flare.ClientRound) -> Local:
        assert current.number == 1 or may_go.wait(WAIT_S)
        return add(1)(current)

    a = pool.submit(play, deployed.site("a", "demo"), model(0), held)
    with closing(deployed.peer("b")) as b:
        b.join("b", _LAYOUT)
        assert isinstance(b.hear(), Start)
        deployed.audited("begun", run="demo")
        newest = _in_the_way(deployed, "global.safetensors")
        file = pack(flare.ModelState(model(3)))
        assert isinstance(b.hand_in(file), Committed)
        may_go.set()

        deployed.audited("paused", run="demo")
        newest.rmdir()  # b says nothing more, and is not there when it is taken up

        assert a.result(WAIT_S)["w"].tolist() == [3]
