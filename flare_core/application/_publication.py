"""A global model as the server holds it: files, mapped, the same bytes for all."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from blake3 import blake3

from flare_core._model import Layout, ModelState
from flare_core._plan import Encoding
from flare_core.communication import (
    CHUNK_BYTES,
    WINDOW,
    Chunk,
    Delta,
    Outgoing,
    Start,
    Want,
    decoded_file,
    encode_model,
    mapped,
    unpack,
    write_file,
)
from flare_core.federation import LoraReport


@final
class ServedFile:
    """Serves any range of a file; nothing is copied, for any number of sites.

    Args:
        path: A file that changes no more.
        stream: The XXH3-128 of the file, which is its name on the wire.

    Attributes:
        path: The file.
        stream: Its name on the wire.
        contents: Its bytes, mapped.
        short: The same, if they are so few that they go along with the name.
    """

    def __init__(self, path: Path, stream: bytes) -> None:
        self.path = path
        self.stream = stream
        self.contents = mapped(path)
        self._outgoing = Outgoing([self.contents])
        self.short: bytes = self._outgoing.short

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return len(self.contents)

    def chunks(self, want: Want) -> Iterator[Chunk]:
        """Yield the chunks of a range, no more than a window of them."""
        stop = min(want.stop, want.start + WINDOW * CHUNK_BYTES)
        for offset, frames in self._outgoing.chunks(want.start, stop):
            yield Chunk(self.stream, offset, frames)


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """What the strategy remembers beside a global model, on the disk.

    Attributes:
        path: Its file.
        digest: The XXH3-128 of the file.
    """

    path: Path
    digest: bytes


@final
@dataclass(frozen=True, slots=True)
class Publication:
    """A global model, and perhaps a shorter way to it.

    Attributes:
        model: Its file.
        weights: What is in it, mapped.
        delta: The model encoded against an earlier one.
        base: The stream of that one.
        error: Relative error of the encoding, before the decoded model became the
            global one.
        memory: What the strategy remembers, if it does.
        lora: How the LoRA weights in it were combined, if it came out of a round and
            has some.
    """

    model: ServedFile
    weights: ModelState
    delta: ServedFile | None = None
    base: bytes = b""
    error: float = 0.0
    memory: Memory | None = None
    lora: LoraReport | None = None

    @property
    def wire_bytes(self) -> int:
        """What a site takes of it that has the model before."""
        return (self.delta or self.model).num_bytes

    def start(self, round_number: int, *, final: bool, counted: int) -> Start:
        """Return the message that tells a site of it."""
        delta = self.delta and Delta(
            base=self.base, stream=self.delta.stream, num_bytes=self.delta.num_bytes
        )
        return Start(
            round_number=round_number,
            stream=self.model.stream,
            num_bytes=self.model.num_bytes,
            final=final,
            delta=delta,
            short=self.model.short,
            counted=counted,
        )

    def chunks(self, want: Want) -> Iterator[Chunk] | None:
        """Return the chunks of a range of one of its files; None if it is neither."""
        for file in (self.model, self.delta):
            if file is not None and file.stream == want.stream:
                return file.chunks(want)
        return None

    def discard(self) -> None:
        """Remove its files; who has mapped them keeps what is in them."""
        for file in (self.model, self.delta, self.memory):
            if file is not None:
                file.path.unlink(missing_ok=True)


@final
class Publisher:
    """Publishes models under the plan's encoding.

    What an encoding loses is lost for the server too: the decoded model *is* the global
    one, so that all hold the same bits, whichever way they came by them.

    Args:
        layout: Of the global model.
        encoding: The plan's word.
        folder: For what is underway.
    """

    def __init__(self, layout: Layout, encoding: Encoding, folder: Path) -> None:
        self._layout = layout
        self._encoding = encoding.down
        self._folder = folder

    def first(self, path: Path, stream: bytes) -> Publication:
        """Publish the model that the run starts from, as it is."""
        file = ServedFile(path, stream)
        return Publication(file, self._weights(file))

    def next(self, path: Path, stream: bytes, before: Publication) -> Publication:
        """Publish a model that came out of a round.

        Args:
            path: Its file.
            stream: The XXH3-128 of the file.
            before: The model that the round started from.
        """
        exact = self.first(path, stream)
        if self._encoding == "none" or exact.model.short:
            return exact
        base = before.weights
        encoded = encode_model(self._encoding, exact.weights, base, folder=self._folder)
        size = sum(len(frame) for frame in encoded.frames)
        name = path.with_suffix(".delta")
        delta = ServedFile(name, write_file(name, size, encoded.frames))
        if encoded.error:
            frames = decoded_file(self._encoding, delta.contents, base)
            stream = write_file(path, exact.model.num_bytes, frames)
        file = ServedFile(path, stream)
        return Publication(
            file, self._weights(file), delta, before.model.stream, encoded.error
        )

    def _weights(self, file: ServedFile) -> ModelState:
        return unpack(file.contents, classes=self._layout.classes)


def blake3_of(path: Path) -> str:
    """Return the BLAKE3 of a file, in hexadecimal."""
    return blake3().update_mmap(path).hexdigest()
