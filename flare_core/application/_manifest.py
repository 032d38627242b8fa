"""A site's own record of every tensor that left it."""

from pathlib import Path
from typing import final

import msgspec

from flare_core._errors import ConfigurationError
from flare_core._model import Layout
from flare_core._site import Site
from flare_core.communication import Frame, digest


class ManifestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that left a site.

    Attributes:
        round: The round it left in; -1 for the weights the run starts from.
        name: The tensor.
        dtype: Its type's code in safetensors.
        shape: Its extent.
        bytes: Its size on the wire.
        sha256: Of its bytes, in hexadecimal.
    """

    round: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str


@final
class Manifest:
    """Appends a JSON line per tensor to ``manifest-SITE.jsonl``.

    Args:
        site: The site; its folder is made if it does not exist.
    """

    def __init__(self, site: Site) -> None:
        self._path = Path(site.folder or ".") / f"manifest-{site.name}.jsonl"

    def note(self, round_number: int, layout: Layout, bodies: list[Frame]) -> None:
        """Record what is about to leave.

        Args:
            round_number: The round it leaves in.
            layout: Of the model.
            bodies: The tensors as they go over the wire, in the layout's order.

        Raises:
            ConfigurationError: If the file cannot be written; then nothing may leave.
        """
        lines = msgspec.json.Encoder().encode_lines(
            [
                ManifestEntry(
                    round=round_number,
                    name=spec.name,
                    dtype=spec.dtype,
                    shape=spec.shape,
                    bytes=len(body),
                    sha256=digest([body]),
                )
                for spec, body in zip(layout.tensors, bodies, strict=True)
            ]
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(lines)
        except OSError as exc:
            msg = f"cannot write {self._path}: {exc.strerror}; nothing was sent"
            raise ConfigurationError(msg) from exc
