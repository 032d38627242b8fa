"""The record of a run, as files that people and other programs can open.

::

    plan.toml            the plan; `flare simulate --plan` takes it back
    rounds.jsonl         a `RoundRecord` per line
    global.safetensors   the newest global model
    best.safetensors     the best one, if `Plan.stop` says by which metric
    best.json            which one that is, as a `Best`
    result.json          the `Result`
    kept.jsonl, kept/    models and updates, if `Plan.keep_updates` says so
    manifest-SITE.jsonl  every tensor that left a site, written by the site
"""

import itertools
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard, final

import msgspec
import tomli_w

from flare_core._errors import ConfigurationError
from flare_core.application import (
    BestFound,
    Event,
    Published,
    RoundPlayed,
    RoundRecord,
    RunEnded,
    RunOpened,
    RunTakenUp,
    link_file,
)

PLAN = "plan.toml"
ROUNDS = "rounds.jsonl"
GLOBAL = "global.safetensors"
BEST = "best.safetensors"
BEST_FACTS = "best.json"
RESULT = "result.json"


@final
class RunFolder:
    """An observer that keeps the record of a run in a folder.

    Args:
        path: The folder; it is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __call__(self, event: Event) -> None:
        """Write down what has happened."""
        match event:
            case RunOpened():
                plan = without_nulls(msgspec.to_builtins(event.plan))
                self._replace(PLAN, [tomli_w.dumps(plan).encode()])
            case RunTakenUp():
                lines = [msgspec.json.encode(one) + b"\n" for one in event.records]
                self._replace(ROUNDS, lines)
            case Published():
                link_file(event.path, self._path / GLOBAL)
            case BestFound():
                link_file(event.path, self._path / BEST)
                self._replace(BEST_FACTS, [msgspec.json.encode(event.best), b"\n"])
            case RoundPlayed():
                self._append(ROUNDS, msgspec.json.encode(event.record) + b"\n")
            case RunEnded():
                result = msgspec.json.encode(event.result)
                self._replace(RESULT, [msgspec.json.format(result), b"\n"])
            case _:
                pass

    def _append(self, name: str, line: bytes) -> None:
        with (self._path / name).open("ab") as file:
            file.write(line)

    def _replace(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        replace_file(self._path / name, pieces)


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file such that a reader sees the old one or the new one, never half."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def fresh_folder(wanted: Path | None, script: Path) -> Path:
    """Return an empty folder for a new run, and make it.

    Args:
        wanted: The folder; by default ``runs/SCRIPT-TIME``.
        script: Names the default.

    Raises:
        ConfigurationError: If the folder is in use already.
    """
    folder = (wanted or _unused(script.stem)).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = next(folder.iterdir(), None)
    except OSError as exc:
        msg = f"run folder {folder}: {exc.strerror}; name another one with --run-dir"
        raise ConfigurationError(msg) from exc
    if occupied is not None:
        msg = (
            f"run folder {folder}: expected an empty or a new folder, found "
            f"{occupied.name!r} in it; name another one with --run-dir, or remove it"
        )
        raise ConfigurationError(msg)
    return folder


def read_plan(path: Path) -> object:
    """Return the tree in a plan's file.

    Raises:
        ConfigurationError: If it cannot be read, or is no TOML.
    """
    try:
        return msgspec.toml.decode(path.read_bytes())
    except OSError as exc:
        msg = f"plan {path}: {exc.strerror}; --plan takes a TOML file"
        raise ConfigurationError(msg) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"plan {path}: expected TOML, got something else: {exc}"
        raise ConfigurationError(msg) from exc


def read_rounds(folder: Path) -> list[RoundRecord]:
    """Return the records of a run's rounds, in order.

    Raises:
        ConfigurationError: If they cannot be read, or a line is damaged or missing.
    """
    path = folder / ROUNDS
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as exc:
        msg = f"{path}: {exc.strerror}"
        raise ConfigurationError(msg) from exc
    return [_read_round(path, number, line) for number, line in enumerate(lines)]


def _read_round(path: Path, number: int, line: bytes) -> RoundRecord:
    try:
        record = msgspec.json.decode(line, type=RoundRecord)
    except ValueError as exc:
        msg = f"{path}: line {number + 1} is damaged: {exc}; restore it from a backup"
        raise ConfigurationError(msg) from exc
    if record.round != number or not line.endswith(b"\n"):
        got = f"round {record.round}" if line.endswith(b"\n") else "a torn line"
        msg = (
            f"{path}: line {number + 1}: expected round {number}, got {got}; restore "
            "it from a backup"
        )
        raise ConfigurationError(msg)
    return record


def without_nulls(tree: dict[str, object]) -> dict[str, object]:
    """Return the tree without what is None: TOML has no word for it."""
    return {
        key: without_nulls(value) if is_table(value) else value
        for key, value in tree.items()
        if value is not None
    }


def is_table(value: object) -> TypeGuard[dict[str, object]]:
    """Return whether a TOML value is a table."""
    return isinstance(value, dict)


def _unused(stem: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{stem}-{stamp}{suffix}" for suffix in _suffixes())
    return next(path for name in names if not (path := Path("runs", name)).exists())


def _suffixes() -> Iterable[str]:
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
