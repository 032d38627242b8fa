"""Reads a run's record from a server, piece by piece."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias, get_args

import msgspec
from blake3 import blake3

from flare_core._errors import ConfigurationError, ProtocolError, RequestDeniedError
from flare_core.application import Best
from flare_core.communication import (
    MODELS,
    Control,
    Piece,
    ReadRun,
    RunFile,
    RunInfo,
    ShowRun,
)
from flare_core.management._run_folder import replace_file

_NEWEST: Final = "global.safetensors"
_WAIT_S = 60.0
"""A server says within a quarter of its patience that there is nothing new."""
_Pieces: TypeAlias = Iterator[bytes]


def pieces(control: Control, run: str, file: RunFile) -> _Pieces:
    """Yield a file of a run, as long as it is now."""
    offset, size = 0, 1
    while offset < size:
        request = ReadRun(run=run, file=file, offset=offset)
        piece = control.ask(request, Piece)
        size = piece.size
        if not piece.content:
            return
        yield piece.content
        offset += len(piece.content)


def whole(control: Control, run: str, file: RunFile) -> bytes:
    """Return a file of a run; empty if there is none yet."""
    try:
        return b"".join(pieces(control, run, file))
    except RequestDeniedError:
        return b""


def follow(control: Control, run: str) -> Iterator[str]:
    """Yield the lines that are said of a run, from its beginning until it is over."""
    rest, offset, growing = b"", 0, True
    while growing:
        request = ReadRun(run=run, file="progress.log", offset=offset, wait=True)
        piece = control.ask(request, Piece, wait_s=_WAIT_S)
        offset += len(piece.content)
        growing = piece.growing or offset < piece.size
        *whole_lines, rest = (rest + piece.content).split(b"\n")
        for line in whole_lines:
            yield line.decode(errors="replace")


def best_of(control: Control, run: str) -> Best | None:
    """Return which global model of a run is the best so far, if that is known.

    Raises:
        ProtocolError: If the server's record of it is damaged.
    """
    content = whole(control, run, "best.json")
    try:
        return msgspec.json.decode(content, type=Best) if content else None
    except ValueError as exc:
        msg = f"run {run!r}: the server's best.json is damaged: {exc}"
        raise ProtocolError(msg) from exc


def download(control: Control, run: str, folder: Path, *, best: bool) -> list[Path]:
    """Write the record of a run, with its newest global model, into a folder.

    Args:
        control: Reaches the server.
        run: The run's name.
        folder: Where to.
        best: Whether to get the best global model, too.

    Returns:
        The files.

    Raises:
        RequestDeniedError: If there is no such run, or no best model where that is
            wanted; then nothing is made.
        ConfigurationError: If they cannot be written.
        ProtocolError: If a model is not the one that the server speaks of.
    """
    written: list[Path] = []
    control.ask(ShowRun(run=run), RunInfo)
    if best and best_of(control, run) is None:
        msg = (
            f"run {run!r} has no best model: no site has reported what its plan says "
            "in stop.metric"
        )
        raise RequestDeniedError(msg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in get_args(RunFile):
            path = folder / name
            if name in MODELS:
                if name == _NEWEST or best:
                    _download_model(control, run, name, path)
            elif content := whole(control, run, name):
                replace_file(path, [content])
            if path.exists():
                written.append(path)
    except OSError as exc:
        msg = f"cannot write to {folder}: {exc.strerror}"
        raise ConfigurationError(msg) from exc
    return written


def _download_model(control: Control, run: str, name: RunFile, path: Path) -> None:
    expected = _blake3_of(control, run, name)
    if not expected:
        return  # there is none yet
    digest = blake3()
    arriving = pieces(control, run, name)
    first = next(arriving)  # before a file is made: it may be denied

    def hashed() -> _Pieces:
        for piece in chain([first], arriving):
            digest.update(piece)
            yield piece

    replace_file(path, hashed())
    if digest.hexdigest() != expected:
        path.unlink()
        msg = (
            f"run {run!r}: expected {name} with BLAKE3 {expected}, got "
            f"{digest.hexdigest()}; a round may have ended meanwhile: download it again"
        )
        raise ProtocolError(msg)


def _blake3_of(control: Control, run: str, name: RunFile) -> str:
    """Return what the server says of a model; empty if there is none yet."""
    if name == _NEWEST:
        return control.ask(ShowRun(run=run), RunInfo).blake3
    best = best_of(control, run)
    return "" if best is None else best.blake3
