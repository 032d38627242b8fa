"""Sites that share what their script imports, and cannot tell."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from flare_core.management._forks import Forks
from flare_core.management._forkserver import leading_imports
from flare_core.management._processes import environment_of
from simulated import COMMAND, NOTES_PIDS, TIMEOUT_S, Flare, WriteScript, left_alive

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="sites are forked under Linux only"
)

FORKED = """\
parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
forked = "_forkserver" in parent
"""
TELLS = """\
import atexit, json
told = dict(
    name=__name__, file=__file__, spec=__spec__, argv=sys.argv[0], path=sys.path[0],
    main=sys.modules["__main__"].__dict__ is globals(), stdin=sys.stdin.read(),
    interrupt=str(signal.getsignal(signal.SIGINT)),
    child=str(signal.getsignal(signal.SIGCHLD)),
    session=os.getsid(0) == os.getpid(), files=sorted(os.listdir("/proc/self/fd")),
    threads=threading.active_count(), first=os.getpid() == threading.get_native_id(),
)
def tell():
    threading.main_thread().join()
    where = Path(sys.argv[1]).with_suffix(f".{os.getpid()}.json")
    where.write_text(json.dumps(told))
threading.Thread(target=tell).start()  # Python waits for it when the script has ended
"""
_THREAD = """\
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
JOINS = """\
with flare.join({"w": np.zeros(3)}) as run:
    for round in run:
        round.submit(round.weights, num_examples=1)
"""


def _logs(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.rglob("site-*.log"))]


def test_sites_share_what_their_script_imports_first(
    script: WriteScript, flare: Flare, tmp_path: Path
) -> None:
    body = FORKED + "print(forked, np.random.rand(), random.random())\n" + JOINS

    path = script(body)
    path.write_text("import numpy.random\n" + path.read_text())

    done = flare("simulate", path, "--sites", "3", "--rounds", "1")

    assert done.returncode == 0, done.stderr
    forked, numpys, pythons = zip(*map(str.split, _logs(tmp_path)), strict=True)
    assert forked == ("True",) * 3
    assert len(set(numpys)) == len(set(pythons)) == 3  # chance of its own
    assert list(tmp_path.rglob("imports.log")) == []


def test_a_script_cannot_tell(
    script: WriteScript, flare: Flare, tmp_path: Path
) -> None:
    path = script(TELLS + JOINS)
    found: list[Mapping[str, Any]] = []
    for sites in ("1", "2"):  # one alone has nobody to share with
        folder = tmp_path / sites
        folder.mkdir()
        done = flare(
            *("simulate", path, "--sites", sites, "--rounds", "1"),
            *("--", folder / "told"),
        )
        assert done.returncode == 0, done.stderr
        found += [json.loads(one.read_text()) for one in folder.glob("*.json")]

    alone, *forked = found
    assert forked == [alone, alone]
    assert (alone["name"], alone["spec"], alone["main"]) == ("__main__", None, True)


@pytest.mark.parametrize(
    ("body", "how", "said"),
    [
        (
            "def f():\n    raise OSError('here')\nf()\n",
            "ended with code 1",
            'train0.py", line ',
        ),
        ("sys.exit(3)\n", "ended with code 3", ""),
        ("sys.exit('no data')\n", "ended with code 1", "no data"),
        ("os.kill(os.getpid(), signal.SIGKILL)\n", "was killed by SIGKILL", ""),
        ("def f(:\n", "ended with code 1", "SyntaxError: "),
    ],
    ids=["raises", "code", "words", "killed", "no-python"],
)
def test_a_script_that_fails_is_told_as_ever(
    body: str, how: str, said: str, script: WriteScript, flare: Flare
) -> None:
    done = flare("simulate", script(body), "--sites", "2", "--rounds", "1")

    assert done.returncode == 1
    assert f"its process {how}" in done.stderr
    assert said in done.stderr
    assert "_forkserver" not in done.stderr
    assert "importlib" not in done.stderr


def _package(folder: Path, body: str) -> Mapping[str, str]:
    """Write an installed package; return the environment in which it is found."""
    place = folder / "site-packages"
    place.mkdir()
    (place / "heavy.py").write_text(body)
    return {**os.environ, "PYTHONPATH": str(place), "COLUMNS": "160"}


def _simulate(
    path: Path, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "simulate", path, "--sites", "2", "--rounds", "1"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def test_what_a_script_sets_before_it_imports_is_set(tmp_path: Path) -> None:
    environment = _package(tmp_path, "import os\nSET = os.environ.get('SET')\n")
    path = tmp_path / "train.py"
    head = "import os, sys\nos.environ['SET'] = sys.argv[0][-8:]\nimport heavy\n"
    path.write_text(head + "import numpy as np\nimport flare_core as flare\n" + JOINS)
    path.write_text(path.read_text() + "print(heavy.SET)\n")

    done = _simulate(path, tmp_path, environment)

    assert done.returncode == 0, done.stderr
    assert _logs(tmp_path) == ["train.py\n"] * 2


@pytest.mark.parametrize(
    ("heavy", "forked", "imported"),
    [
        ("print('imported')", "True", 0),
        (f"print('imported')\n{_THREAD}", "False", 1),
    ],
    ids=["prints", "thread"],
)
def test_imports_that_cannot_be_shared_are_made_by_each_site(
    heavy: str, forked: str, imported: int, tmp_path: Path
) -> None:
    environment = _package(tmp_path, heavy)
    path = tmp_path / "train.py"
    head = "import os\nfrom pathlib import Path\nimport numpy as np\n"
    head += "import flare_core as flare\nimport heavy\n"
    path.write_text(head + FORKED + "print(forked)\n" + JOINS)

    done = _simulate(path, tmp_path, environment)

    assert done.returncode == 0, done.stderr
    assert [log.splitlines()[-1] for log in _logs(tmp_path)] == [forked] * 2
    assert [log.count("imported") for log in _logs(tmp_path)] == [imported] * 2
    (shared,) = tmp_path.rglob("imports.log")
    assert shared.read_text() == "imported\n"


def test_threads_that_end_for_a_fork_are_no_obstacle(tmp_path: Path) -> None:
    """OpenBLAS has started some when NumPy is imported."""
    path = tmp_path / "train.py"
    path.write_text("import numpy\n")
    ready: Future[str] = Future()

    environment = environment_of("", num_threads=2)
    forks = Forks(path, environment, tmp_path / "imports.log", ready.set_result)

    assert ready.result(TIMEOUT_S) == ""
    forks.close()


def test_without_the_process_that_forks_the_run_ends_and_nothing_is_left(
    script: WriteScript, flare: Flare, tmp_path: Path
) -> None:
    body = (
        FORKED
        + NOTES_PIDS
        + (
            "if me.index == 1:\n    os.kill(os.getppid(), signal.SIGKILL)\n"
            "threading.Event().wait()\n"
        )
    )

    done = flare("simulate", script(body), "--sites", "2", "--rounds", "1")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert left_alive(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os, json as j\n", [("os", []), ("json", [])]),
        ('"""Docs."""\nfrom os import path\n', [("os", ["path"])]),
        ("from numpy import *\nimport numpy.linalg\n", None),
        ("from . import own\nimport os\n", []),
        ("import own\nimport os\n", []),
        ("import os\nx = 1\nimport json\n", [("os", [])]),
        ("import os\nif x:\n    import json\nimport csv\n", [("os", [])]),
        ("import missing_package\nimport os\n", []),
        ("import (\n", []),
        ("import os\x00\n", []),
    ],
)
def test_the_imports_that_can_be_made_before_the_script(
    text: str, found: list[tuple[str, list[str]]] | None, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_text(text)
    (tmp_path / "own.py").touch()

    expected = [("numpy", []), ("numpy.linalg", [])] if found is None else found
    assert list(leading_imports(path)) == expected


def test_an_interrupt_while_the_imports_are_made_ends_it_at_once(
    tmp_path: Path,
) -> None:
    environment = _package(
        tmp_path,
        "import pathlib, threading\n"
        "pathlib.Path('begun').touch()\nthreading.Event().wait()\n",
    )
    path = tmp_path / "train.py"
    path.write_text("import heavy\n")
    with subprocess.Popen(
        [COMMAND, "simulate", path, "--sites", "2"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        while not (tmp_path / "begun").exists():
            assert command.poll() is None

        command.send_signal(signal.SIGTERM)
        _, errors = command.communicate(timeout=TIMEOUT_S)

    assert command.returncode == 130
    assert "interrupted" in errors
