"""A site's own record of every tensor that left it."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import msgspec
from blake3 import blake3

from flare_core._errors import ConfigurationError
from flare_core._model import Layout
from flare_core._site import Site
from flare_core.communication import Frame

_WORTH_A_THREAD = 1 << 20
_MOST_THREADS = 4


class ManifestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that left a site.

    Attributes:
        round: The round it left in; -1 for the weights the run starts from.
        name: The tensor.
        dtype: Its type's code in safetensors.
        shape: Its extent.
        bytes: Its size on the wire.
        blake3: Of its bytes on the wire, in hexadecimal.
    """

    round: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    blake3: str


@final
class Manifest:
    """Appends a JSON line per tensor to ``manifest-SITE.jsonl``.

    Args:
        site: The site; its folder is made if it does not exist.
    """

    def __init__(self, site: Site) -> None:
        self._path = Path(site.folder or ".") / f"manifest-{site.name}.jsonl"

    def note(
        self, round_number: int, layout: Layout, bodies: Mapping[str, Frame]
    ) -> None:
        """Record what is about to leave.

        Args:
            round_number: The round it leaves in.
            layout: Of the model.
            bodies: The bytes of each tensor as they go over the wire, by name.

        Raises:
            ConfigurationError: If the file cannot be written; then nothing may leave.
        """
        digests = _digests(bodies)
        lines = msgspec.json.Encoder().encode_lines(
            [
                ManifestEntry(
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
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(lines)
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
