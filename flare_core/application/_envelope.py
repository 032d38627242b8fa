"""What a site exchanges where the server cannot read: sealed models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import msgspec

from flare_core._errors import ConfigurationError
from flare_core._model import Layout, Metrics, ModelState, TensorClass, TensorSpec
from flare_core._site import Site
from flare_core.communication import (
    INITIAL,
    Frame,
    GroupKey,
    Part,
    Sealed,
    file_bytes,
    sealed_bytes,
    unpack,
)

TENSOR = "sealed"
"""The one tensor of a sealed model: a row of bytes."""


@final
class Envelope:
    """Seals what leaves a site, and opens what arrives.

    Args:
        site: Whose key it is done with.
        run: The run's own name.
        layout: Of what is exchanged.

    Attributes:
        name: Of the site in the run, for files.

    Raises:
        ConfigurationError: If the site has no group key.
    """

    def __init__(self, site: Site, run: str, layout: Layout) -> None:
        if not site.group_key:
            msg = (
                f"site {site.name!r}: in run {run} models are sealed, so that the "
                "server cannot read them: expected `group_key`, the name of a file, in "
                f"the site file {site.file}, found none; `flare group-key FILE` makes "
                "one, for all sites of the group"
            )
            raise ConfigurationError(msg)
        self._key = GroupKey.read(Path(site.group_key))
        self.name = f"{site.name}-{run}"
        self._site = site.name
        self._run = run
        self._layout = layout

    def leaving(self, frames: Sequence[Frame], number: int, facts: bytes) -> ModelState:
        """Return an update as it leaves; the weights a run starts from are a model.

        Args:
            frames: Its file, in pieces.
            number: The round that it answers.
            facts: What is said of it beside; see `facts_of`.
        """
        if number == INITIAL:
            return self.model(frames, 0)
        return self._sealed(self._update(self._site, number), facts, frames)

    def model(self, frames: Sequence[Frame], number: int) -> ModelState:
        """Return a global model as it leaves.

        Args:
            frames: Its file, in pieces.
            number: Of the round that starts from it.
        """
        return self._sealed(self._model(number), b"", frames)

    def opened(self, file: Frame, number: int) -> ModelState:
        """Return the global model in a file.

        Raises:
            ProtocolError: If it is none of this run and number.
        """
        return self._opened(file, self._model(number), b"")

    def update(self, file: Frame, part: Part, number: int) -> ModelState:
        """Return the update in a file.

        Args:
            file: The bytes of the part.
            part: What the server says of it.
            number: The round that it answers.

        Raises:
            ProtocolError: If it is none of this run, site and round, or the server
                says of it what the site did not.
        """
        facts = facts_of(part.num_examples, part.num_steps, part.global_metrics)
        return self._opened(file, self._update(part.site, number), facts)

    @property
    def layout(self) -> Layout:
        """What the server sees of what is exchanged: so many bytes."""
        shape = (sealed_bytes(file_bytes(self._layout)),)
        return Layout((TensorSpec(TENSOR, "U8", shape, TensorClass.COUNTER),))

    def _sealed(
        self, sealed: Sealed, facts: bytes, frames: Sequence[Frame]
    ) -> ModelState:
        return ModelState({TENSOR: self._key.seal(sealed, facts, frames)})

    def _opened(self, file: Frame, wanted: Sealed, facts: bytes) -> ModelState:
        row = unpack(file)[TENSOR]
        opened = self._key.open(row, wanted, facts)
        return unpack(opened, classes=self._layout.classes)

    def _update(self, site: str, number: int) -> Sealed:
        return Sealed(kind="update", run=self._run, site=site, number=number)

    def _model(self, number: int) -> Sealed:
        return Sealed(kind="model", run=self._run, number=number)


def facts_of(num_examples: int, num_steps: int, global_metrics: Metrics) -> bytes:
    """Return what a site says of its update in the open, for the seal to cover."""
    metrics: Mapping[str, float] = dict(sorted(global_metrics.items()))
    return msgspec.msgpack.encode((num_examples, num_steps, metrics))
