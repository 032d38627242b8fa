"""Reads a run's record from a server, piece by piece."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias, get_args

from blake3 import blake3

from flare_core._errors import ConfigurationError, ProtocolError, RequestDeniedError
from flare_core.communication import Control, Piece, ReadRun, RunFile, RunInfo, ShowRun
from flare_core.management._run_folder import replace_file

_MODEL: Final = "global.safetensors"
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


def download(control: Control, run: str, folder: Path) -> list[Path]:
    """Write the record of a run, with its newest global model, into a folder.

    Returns:
        The files.

    Raises:
        RequestDeniedError: If there is no such run; then nothing is made.
        ConfigurationError: If they cannot be written.
        ProtocolError: If the model is not the one that the server speaks of.
    """
    written: list[Path] = []
    control.ask(ShowRun(run=run), RunInfo)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in get_args(RunFile):
            path = folder / name
            if name == _MODEL:
                _download_model(control, run, path)
            elif content := whole(control, run, name):
                replace_file(path, [content])
            if path.exists():
                written.append(path)
    except OSError as exc:
        msg = f"cannot write to {folder}: {exc.strerror}"
        raise ConfigurationError(msg) from exc
    return written


def _download_model(control: Control, run: str, path: Path) -> None:
    info = control.ask(ShowRun(run=run), RunInfo)
    if not info.blake3:
        return  # there is none yet
    digest = blake3()
    arriving = pieces(control, run, _MODEL)
    first = next(arriving)  # before a file is made: it may be denied

    def hashed() -> _Pieces:
        for piece in chain([first], arriving):
            digest.update(piece)
            yield piece

    replace_file(path, hashed())
    if digest.hexdigest() != info.blake3:
        path.unlink()
        msg = (
            f"run {run!r}: expected a global model with BLAKE3 {info.blake3}, got "
            f"{digest.hexdigest()}; a round may have ended meanwhile: download it again"
        )
        raise ProtocolError(msg)
