"""What leaves a site and what arrives there, under the plan's encodings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from flare_core._model import ModelState
from flare_core._plan import Encoding
from flare_core._site import Site
from flare_core.communication import (
    Delta,
    Frame,
    Residual,
    Start,
    decoded_file,
    encode_model,
    pack,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A model as it leaves.

    Attributes:
        frames: Joined, a safetensors file.
        bodies: The bytes of each tensor on the wire, by name.
        base: The stream of the global model that it is encoded against, if it is.
        error: Relative error of the encoding.
    """

    frames: Sequence[Frame]
    bodies: dict[str, Frame]
    base: bytes = b""
    error: float = 0.0


@final
class Edge:
    """Encodes updates and decodes global models; holds what both sides hold.

    Args:
        site: Whose folder the error feedback and what is underway are in.
        encoding: The plan's word.
        run: The run's own name.
    """

    def __init__(self, site: Site, encoding: Encoding, *, run: str) -> None:
        self._encoding = encoding
        self._folder = Path(site.folder or ".")
        self._residual = Residual(self._folder, site=site.name, run=run)
        self._base: ModelState | None = None
        self._base_stream = b""

    def leaving(self, weights: ModelState) -> Leaving:
        """Return what to send of a local model.

        Raises:
            ConfigurationError: If there is no room for it, or the error feedback of
                an earlier round is damaged.
        """
        if self._encoding.up == "none" or self._base is None:
            return plain(weights)
        self._folder.mkdir(parents=True, exist_ok=True)
        encoded = encode_model(
            self._encoding.up,
            weights,
            self._base,
            folder=self._folder,
            keep=self._encoding.keep,
            residual=self._residual,
        )
        return Leaving(
            frames=encoded.frames,
            bodies=encoded.bodies,
            base=self._base_stream,
            error=encoded.error,
        )

    def accepted(self) -> None:
        """Note that what was leaving has arrived, and will count."""
        if self._encoding.up == "topk" and self._base is not None:
            self._residual.commit()

    def accepted_earlier(self) -> None:
        """Note the same of what left an earlier process of this site last."""
        if self._encoding.up == "topk":
            self._residual.commit_earlier()

    def ended(self) -> None:
        """Note that no update follows, and forget what was kept for it.

        Raises:
            ConfigurationError: If the file system refuses.
        """
        if self._encoding.up == "topk":
            self._residual.remove()

    def short_cut(self, start: Start) -> Delta | None:
        """Return the shorter way to a global model, if it begins where the site is."""
        delta = start.delta
        return delta if delta is not None and delta.base == self._base_stream else None

    def decoded(self, file: memoryview) -> Iterator[Frame]:
        """Yield the file of a global model that came as a delta, in pieces.

        Raises:
            ProtocolError: If it is no delta of the model that this site holds.
        """
        base = ModelState({}) if self._base is None else self._base
        return decoded_file(self._encoding.down, file, base)

    def arrived(self, stream: bytes, weights: ModelState) -> None:
        """Keep a global model where later ones, or updates, are told against it."""
        if (self._encoding.up, self._encoding.down) != ("none", "none"):
            self._base, self._base_stream = weights, stream


def plain(weights: ModelState) -> Leaving:
    """Return what to send of weights that travel as they are."""
    frames = pack(weights)
    names = (spec.name for spec in weights.layout.tensors)
    return Leaving(frames=frames, bodies=dict(zip(names, frames[1:], strict=True)))
