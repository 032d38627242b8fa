"""A site's own record of every tensor that left it."""

import os
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import final

import msgspec
from blake3 import blake3

from flare_core._errors import ConfigurationError
from flare_core._model import Layout
from flare_core._site import Site
from flare_core.application._lines import Lines, appending
from flare_core.communication import Frame

_WORTH_A_THREAD = 1 << 20
_MOST_THREADS = 4


class ManifestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that left a site.

    Attributes:
        run: The run's name: a site may take part in several at once.
        round: The round it left in; -1 for the weights the run starts from.
        name: The tensor.
        dtype: Its type's code in safetensors.
        shape: Its extent.
        bytes: Its size on the wire.
        blake3: Of its bytes on the wire, in hexadecimal.
    """

    run: str
    round: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    blake3: str


class _Left(msgspec.Struct, frozen=True):
    """What is counted of an entry; those of old versions name no run."""

    bytes: int
    run: str = ""


_LEFT = msgspec.json.Decoder(_Left)


@final
class Manifest:
    """Appends a JSON line per tensor to ``manifest-SITE.jsonl``.

    Args:
        site: The site; its folder is made if it does not exist.
    """

    def __init__(self, site: Site) -> None:
        self._path = Path(site.folder or ".") / f"manifest-{site.name}.jsonl"
        # a budget must hold after a loss of power, too
        self._sync = bool(site.server_key) or site.policy.most_bytes is not None

    def left(self, run: str) -> int:
        """Return how many bytes have left in a run so far.

        Raises:
            ConfigurationError: If the file is damaged; then nobody can tell.
        """
        with self._open() as lines:
            lines.cut()  # what was not written whole has not left
        try:
            with self._path.open("rb") as file:
                entries = map(_LEFT.decode, file)
                return sum(entry.bytes for entry in entries if entry.run == run)
        except (OSError, msgspec.DecodeError) as exc:
            msg = (
                f"{self._path} is damaged: {exc}; policy.most_bytes counts what is in "
                "it: put it right, or move it aside to count from nothing"
            )
            raise ConfigurationError(msg) from exc

    def note(
        self, run: str, round_number: int, layout: Layout, bodies: Mapping[str, Frame]
    ) -> str:
        """Record what is about to leave.

        Args:
            run: The run's name.
            round_number: The round it leaves in.
            layout: Of the model.
            bodies: The bytes of each tensor as they go over the wire, by name.

        Returns:
            The BLAKE3 of the lines written, which tells all that is in them.

        Raises:
            ConfigurationError: If the file cannot be written; then nothing may leave.
        """
        digests = _digests(bodies)
        lines = msgspec.json.Encoder().encode_lines(
            [
                ManifestEntry(
                    run=run,
                    round=round_number,
                    name=spec.name,
                    dtype=spec.dtype,
                    shape=spec.shape,
                    bytes=len(bodies[spec.name]),
                    blake3=digests[spec.name],
                )
                for spec in layout.tensors
            ]
        )
        with self._open() as file:
            file.cut()
            file.append(lines)
            if self._sync:
                file.sync()
        return _digest(lines)

    @contextmanager
    def _open(self) -> Generator[Lines]:
        try:
            with appending(self._path) as lines:
                yield lines
        except OSError as exc:
            msg = f"cannot write {self._path}: {exc.strerror}; nothing was sent"
            raise ConfigurationError(msg) from exc


def _digests(bodies: Mapping[str, Frame]) -> dict[str, str]:
    """Return the BLAKE3 of each, on all cores: it takes longer than to send them."""
    if sum(len(body) for body in bodies.values()) < _WORTH_A_THREAD:
        return {name: _digest(body) for name, body in bodies.items()}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        return dict(zip(bodies, pool.map(_digest, bodies.values()), strict=True))


def _digest(body: Frame) -> str:
    return blake3(body).hexdigest()
