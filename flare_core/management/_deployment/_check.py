"""Looks at a server's folder, and changes nothing in it."""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from flare_core._errors import ConfigurationError
from flare_core.application import (
    copied,
    database_faults,
    signing_fault,
    verify_audit,
)
from flare_core.communication import KeyPair, RunInfo
from flare_core.management._deployment._check_run import check_record, check_run
from flare_core.management._deployment._checked import Checked
from flare_core.management._deployment._folder import ServerFolder
from flare_core.management._deployment._store import SCHEMA, Store
from flare_core.management._wording import bytes_text, counted

_RESTORE = "restore it from a backup"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOCKED_FROM = 0x40000002
_LOCKED_BYTES = 510
"""What SQLite locks of a database: https://www.sqlite.org/fileformat2.html, 1.4."""


def check_server(folder: ServerFolder) -> Iterator[Checked]:
    """Look at settings, keys, store, runs, audit log and disk of a server.

    What a server that runs on the folder has for itself, or writes to, is not looked
    at.

    Args:
        folder: The server's; it is only read.
    """
    yield _settings(folder)
    yield from _modes(folder)
    yield from _keys(folder)
    yield from _audit(folder)
    if _is_held(folder.store):
        words = "a server runs on this folder and holds it; stop it to check the store"
        yield Checked("note", "store", words)
        for path in _folders(folder.runs):
            yield from check_record(path)
    else:
        yield from _store_and_runs(folder)
    free = bytes_text(shutil.disk_usage(folder.path).free)
    yield Checked("ok", "disk", f"{free} free")


def _settings(folder: ServerFolder) -> Checked:
    try:
        settings = folder.settings()
    except ConfigurationError as exc:
        return Checked("wrong", "settings", str(exc))
    return Checked("ok", "settings", f"listens at {settings.listen}")


def _modes(folder: ServerFolder) -> Iterator[Checked]:
    """Look at who may read what is secret."""
    secret = ("server.key", "server.next", "admin.key", "audit.key", "store.sqlite")
    paths = [folder.path, *(folder.path / name for name in secret)]
    good = True
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if mode & _OTHERS:
            good = False
            wanted = "700" if path == folder.path else "600"
            yield Checked(
                "wrong",
                "modes",
                f"{path} has mode {mode:03o}, so that others can get at secrets; "
                f"chmod {wanted} {path}, and think of the keys as known",
            )
    if good:
        yield Checked("ok", "modes", "nobody but the owner gets at what is secret")


def _keys(folder: ServerFolder) -> Iterator[Checked]:
    names = ["server.key", "admin.key"]
    names += ["server.next"] if folder.next_key.exists() else []
    faults: list[str] = []
    for name in names:
        path = folder.path / name
        if not path.exists():
            faults.append(f"{path} is missing; {_RESTORE}")
            continue
        try:
            KeyPair.read(path)
        except ConfigurationError as exc:
            faults.append(f"{exc}; {_RESTORE}")
    fault = signing_fault(folder.path)
    faults += [fault] if fault else []
    for words in faults:
        yield Checked("wrong", "keys", words)
    if not faults:
        yield Checked("ok", "keys", f"{', '.join(names)} are keys")


def _audit(folder: ServerFolder) -> Iterator[Checked]:
    began = [folder.path / name for name in ("audit.jsonl", "audit.key", "audit.head")]
    if not any(path.exists() for path in began):
        yield Checked("note", "audit log", "there is none: the server never ran")
        return
    try:
        verdict = verify_audit(folder.path)
    except ConfigurationError as exc:
        yield Checked("wrong", "audit log", f"{exc}; {_RESTORE}")
        return
    for problem in verdict.problems:
        words = f"{problem}; see `flare audit verify {folder.path}`"
        yield Checked("wrong", "audit log", words)
    if not verdict.problems:
        words = f"{counted(verdict.lines, 'line')} as they were written"
        yield Checked("ok", "audit log", words)


def _store_and_runs(folder: ServerFolder) -> Iterator[Checked]:
    try:
        with copied(folder.store) as copy:
            faults = [*database_faults(copy, SCHEMA)]
            infos = [] if faults else _infos(copy)
    except OSError as exc:
        faults = [f"{exc.strerror}"]
        infos = []
    except ValueError as exc:  # a plan in it, say
        faults = [str(exc)]
        infos = []
    for fault in faults:
        yield Checked("wrong", "store", f"{folder.store}: {fault}; {_RESTORE}")
    if faults:
        return
    yield Checked("ok", "store", f"whole; {counted(len(infos), 'run')}")
    for info in infos:
        path = folder.runs / info.name
        if path.is_dir():
            yield from check_run(path, info)
        else:
            words = f"{path} is missing; {_RESTORE}"
            yield Checked("wrong", f"run {info.name}", words)
    for path in _folders(folder.runs):
        if path.name not in {info.name for info in infos}:
            words = f"{path} is of no run that the store knows; remove it"
            yield Checked("note", f"run {path.name}", words)


def _infos(copy: Path) -> list[RunInfo]:
    with closing(Store(copy)) as store:
        return store.runs()


def _folders(runs: Path) -> list[Path]:
    return sorted(path for path in runs.glob("*") if path.is_dir())


def _is_held(store: Path) -> bool:
    """Return whether a server has a store for itself: SQLite's lock is on it."""
    try:
        with store.open("rb") as file:
            lock = fcntl.LOCK_SH | fcntl.LOCK_NB
            fcntl.lockf(file, lock, _LOCKED_BYTES, _LOCKED_FROM, os.SEEK_SET)
    except BlockingIOError:
        return True
    except OSError:  # it cannot be read at all, and that will be told
        return False
    return False
