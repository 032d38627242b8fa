"""Each thing that is wrong with a server's folder is named, and nothing else."""

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import flare_core as flare
from deployed import Deployment, ServerProcess, deployment
from flare_core.communication import SHORT_BYTES
from flare_core.management._deployment import Checked, ServerFolder, check_server
from simulated import Flare
from site_scripts import WAIT_S, Local, add, model, plan, play, wander

_LONG = {"w": np.zeros(SHORT_BYTES, np.float32)}
_ON = "runs/on/spool/on"


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that was killed: one run is over, one has an update in."""
    path = tmp_path_factory.mktemp("killed") / "srv"
    goes_on = threading.Event()

    def waits(current: flare.ClientRound) -> Local:
        assert current.number == 0 or goes_on.wait(WAIT_S)
        return wander("b")(current)

    with ThreadPoolExecutor() as pool, deployment(process=True) as deployed:
        for name in "ab":
            deployed.member(name)
        deployed.create("over", plan(rounds=2))
        over = [
            pool.submit(play, deployed.site(name, "over"), model(0), add(1))
            for name in "ab"
        ]
        for site in over:
            site.result(WAIT_S)
        deployed.ended("over")
        deployed.create("on", plan(rounds=2))
        on = [
            pool.submit(play, deployed.site(name, "on"), _LONG, train)
            for name, train in (("a", wander("a")), ("b", waits))
        ]
        _wait_for_an_update(deployed.folder.path / _ON / "run.sqlite")
        _kill(deployed)
        sockets = shutil.ignore_patterns("*.sock")
        shutil.copytree(deployed.folder.path, path, ignore=sockets)
        deployed.start()
        goes_on.set()
        for site in on:
            site.result(WAIT_S)
    return path


def _wait_for_an_update(store: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    count = "SELECT count(*) FROM updates WHERE round = 1"
    while time.monotonic() < deadline:
        if store.exists():
            with closing(sqlite3.connect(store, timeout=WAIT_S)) as db:
                if db.execute(count).fetchone() == (1,):
                    return
    raise AssertionError(store)


def _kill(deployed: Deployment) -> None:
    server = deployed._server
    assert isinstance(server, ServerProcess)
    os.kill(server.pid, signal.SIGKILL)
    server._process.wait(WAIT_S)


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> ServerFolder:
    """A copy of it, for the test to spoil."""
    path = tmp_path / "srv"
    shutil.copytree(killed, path)
    return ServerFolder(path)


def _wrong(folder: ServerFolder) -> list[Checked]:
    return [one for one in check_server(folder) if one.level == "wrong"]


def _files(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    for one in sorted(path.rglob("*")):
        content = one.read_bytes() if one.is_file() else b""
        yield one, one.stat().st_mtime_ns, content


def test_nothing_is_wrong_with_a_server_that_was_killed(folder: ServerFolder) -> None:
    found = {one.what: str(one) for one in check_server(folder)}

    assert not _wrong(folder)
    assert found["run over"] == "ok     run over: finished, 2 rounds of 2"
    assert found["run on"] == "ok     run on: playing, 1 round of 2"
    assert found["store"] == "ok     store: whole; 2 runs"
    assert found["disk"].endswith(" free")


def test_a_look_changes_nothing(folder: ServerFolder) -> None:
    before = list(_files(folder.path))

    list(check_server(folder))

    assert list(_files(folder.path)) == before


def _append(text: str) -> Callable[[Path], None]:
    def append(path: Path) -> None:
        with path.open("a") as file:
            file.write(text)

    return append


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return replace


def _flip(path: Path) -> None:
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # it may have another name
    path.write_bytes(content)


def _in_it(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what spoils the only file in a folder."""

    def inner(folder: Path) -> None:
        (path,) = folder.iterdir()
        spoil(path)

    return inner


def _lose_a_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def _spoil(path: Path) -> None:
    """Write over the pages of a database, but the first."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x55" * (len(content) - 4096))


def _sql(statement: str) -> Callable[[Path], None]:
    def execute(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(statement)

    return execute


@pytest.mark.parametrize(
    ("name", "spoil", "what", "words"),
    [
        ("server.toml", _append("\nwrong = 1\n"), "settings", "unknown field `wrong`"),
        ("server.toml", Path.unlink, "settings", "`flare server init "),
        ("", lambda path: path.chmod(0o755), "modes", "has mode 755, so that others"),
        ("server.key", lambda path: path.chmod(0o640), "modes", "chmod 600 "),
        ("store.sqlite", lambda path: path.chmod(0o604), "modes", "has mode 604"),
        ("server.key", Path.unlink, "keys", "server.key is missing; restore it"),
        ("admin.key", _append("x"), "keys", "expected a secret key of 40 characters"),
        ("audit.key", Path.unlink, "keys", "audit.key is gone"),
        ("audit.jsonl", _replace('"run":"on"', '"run":"no"'), "audit log", ": was cha"),
        ("audit.jsonl", Path.unlink, "audit log", "No such file"),
        ("store.sqlite", Path.unlink, "store", "No such file or directory"),
        ("store.sqlite", _spoil, "store", "sqlite: is damaged: "),
        (
            "store.sqlite",
            _sql("DROP TABLE keys"),
            "store",
            "table keys: expected colum",
        ),
        ("store.sqlite", _sql("UPDATE runs SET plan = '{'"), "store", "truncated"),
        ("runs/over", shutil.rmtree, "run over", "runs/over is missing; restore"),
        ("runs/over/plan.toml", Path.unlink, "run over", "plan.toml is missing"),
        ("runs/over/plan.toml", _append("="), "run over", "expected TOML"),
        (
            "runs/on/plan.toml",
            _replace('"none"', '"fedprox"'),
            "run on",
            "is not the pl",
        ),
        (
            "runs/over/rounds.jsonl",
            _lose_a_line,
            "run over",
            "line 1: expected round 0",
        ),
        ("runs/over/rounds.jsonl", _append("{"), "run over", "line 3 is damaged"),
        ("runs/over/rounds.jsonl", Path.unlink, "run over", "expected 2 rounds, got 0"),
        ("runs/over/result.json", Path.unlink, "run over", "result.json: No such file"),
        ("runs/over/result.json", _append("}"), "run over", "result.json: "),
        ("runs/over/global.safetensors", _flip, "run over", "expected BLAKE3 "),
        ("runs/over/global.safetensors", Path.unlink, "run over", "ors is missing"),
        (f"{_ON}/run.sqlite", Path.unlink, "run on", "run.sqlite: No such file"),
        (f"{_ON}/run.sqlite", _spoil, "run on", "sqlite: is damaged: "),
        (
            f"{_ON}/run.sqlite",
            _sql("DROP TABLE sites"),
            "run on",
            "table sites: expect",
        ),
        (
            f"{_ON}/run.sqlite",
            _sql("UPDATE identity SET plan = 'x'"),
            "run on",
            "spool/on/run.sqlite is of run 'on', plan x",
        ),
        (f"{_ON}/models", _in_it(_flip), "run on", "the global model of round 1"),
        (f"{_ON}/models", _in_it(Path.unlink), "run on", ".safetensors: No such file"),
        (f"{_ON}/updates/a.safetensors", _flip, "run on", "the update of site 'a', "),
    ],
)
def test_what_is_wrong_is_named(
    folder: ServerFolder,
    name: str,
    spoil: Callable[[Path], None],
    what: str,
    words: str,
) -> None:
    spoil(folder.path / name)

    (wrong,) = _wrong(folder)

    assert wrong.what == what
    assert words in wrong.words


@pytest.mark.parametrize(
    ("name", "spoil", "what", "words"),
    [
        ("runs/on/rounds.jsonl", _append("{"), "run on", "the server, which writes it"),
        ("runs/over/spool", Path.mkdir, "run over", "spool was left by a server"),
        ("runs/lost", Path.mkdir, "run lost", "is of no run that the store knows"),
    ],
)
def test_what_does_no_harm_is_a_note(
    folder: ServerFolder,
    name: str,
    spoil: Callable[[Path], None],
    what: str,
    words: str,
) -> None:
    spoil(folder.path / name)

    (note,) = [one for one in check_server(folder) if one.level != "ok"]

    assert (note.level, note.what) == ("note", what)
    assert words in note.words


def test_the_command_says_a_line_for_each_thing_and_ends_with_1(
    flare: Flare, folder: ServerFolder
) -> None:
    good = flare("server", "check", folder.path)
    folder.keys("server")
    (folder.path / "server.key").unlink()
    (folder.path / "runs/over/result.json").unlink()

    bad = flare("server", "check", folder.path)

    assert good.returncode == 0, good.stdout + good.stderr
    assert bad.returncode == 1
    lines = bad.stdout.splitlines()
    assert len(lines) == len(good.stdout.splitlines())
    assert [line.split()[0] for line in lines].count("wrong") == 2
    assert bad.stderr == f"2 things wrong in {folder.path}\n"


def test_a_folder_that_is_none_is_named(flare: Flare) -> None:
    done = flare("server", "check", "nowhere")

    assert done.returncode == 1
    assert "nowhere is no folder; `flare server init nowhere` makes one" in done.stderr


def test_a_server_that_runs_keeps_what_it_holds(flare: Flare) -> None:
    with deployment(process=True) as deployed:
        deployed.create("on", plan())

        done = flare("server", "check", deployed.folder.path)

        assert done.returncode == 0, done.stdout + done.stderr
        assert "note   store: a server runs on this folder" in done.stdout
        assert "note   run on: is not over: stop the server" in done.stdout
        assert "wrong" not in done.stdout
        assert deployed.info("on").state == "waiting"
