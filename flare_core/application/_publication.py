"""A global model as the server holds it: files, mapped, the same bytes for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from blake3 import blake3

from flare_core._model import Layout, ModelState
from flare_core._plan import Encoding
from flare_core.application._spool import Spool
from flare_core.communication import (
    CHUNK_BYTES,
    SHORT_BYTES,
    WINDOW,
    Chunk,
    Delta,
    Frame,
    Outgoing,
    Start,
    Want,
    decoded_file,
    encode_model,
    fill_file,
    mapped,
    sync,
    unpack,
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
        spool: Holds the files.
        delta: The model encoded against an earlier one.
        base: The stream of that one.
        error: Relative error of the encoding, before the decoded model became the
            global one.
        memory: What the strategy remembers, if it does.
        lora: How the LoRA weights in it were combined, if it came out of a round and
            has some.
        final: Whether no round follows, whatever the plan says.
    """

    model: ServedFile
    weights: ModelState
    spool: Spool
    delta: ServedFile | None = None
    base: bytes = b""
    error: float = 0.0
    memory: Memory | None = None
    lora: LoraReport | None = None
    final: bool = False

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

    def sync(self) -> None:
        """Have its file be on the disk for good."""
        sync(self.model.path)

    def discard(self) -> None:
        """Remove its file, unless that is another model's, too."""
        self.spool.drop(self.model.path)

    def discard_beside(self) -> None:
        """Remove what was of use while it was the newest one."""
        for file in (self.delta, self.memory):
            if file is not None:
                self.spool.drop(file.path)


@final
class Publisher:
    """Publishes models under the plan's encoding.

    What an encoding loses is lost for the server too: the decoded model *is* the global
    one, so that all hold the same bits, whichever way they came by them.

    Args:
        layout: Of the global model.
        encoding: The plan's word.
        spool: Holds the files.
    """

    def __init__(self, layout: Layout, encoding: Encoding, spool: Spool) -> None:
        self._layout = layout
        self._encoding = encoding.down
        self._spool = spool

    def first(self, path: Path, stream: bytes) -> Publication:
        """Publish a model that has its file already, as it is."""
        file = ServedFile(path, stream)
        return Publication(file, self._weights(file.contents), self._spool)

    def next(self, path: Path, stream: bytes, before: Publication) -> Publication:
        """Publish a model that came out of a round.

        Args:
            path: Its file, whole; it is given its name.
            stream: The XXH3-128 of the file.
            before: The model that the round started from.
        """
        exact = mapped(path)
        if self._encoding == "none" or len(exact) <= SHORT_BYTES:
            return self._named(path, stream)
        weights, base = self._weights(exact), before.weights
        folder = self._spool.folder
        encoded = encode_model(self._encoding, weights, base, folder=folder)
        delta = self._delta(encoded.frames)
        if encoded.error:  # nobody looks at the exact one any more
            frames = decoded_file(self._encoding, delta.contents, base)
            stream = fill_file(path, len(exact), frames)
        return replace(
            self._named(path, stream),
            delta=delta,
            base=before.model.stream,
            error=encoded.error,
        )

    def _named(self, path: Path, stream: bytes) -> Publication:
        name = self._spool.model(stream)
        self._spool.put(path, name)
        return self.first(name, stream)

    def _delta(self, frames: Sequence[Frame]) -> ServedFile:
        path = self._spool.unfinished("delta")
        stream = fill_file(path, sum(len(frame) for frame in frames), frames)
        name = self._spool.delta(stream)
        self._spool.put(path, name)
        return ServedFile(name, stream)

    def _weights(self, file: Frame) -> ModelState:
        return unpack(file, classes=self._layout.classes)


def blake3_of(path: Path) -> str:
    """Return the BLAKE3 of a file, in hexadecimal."""
    return blake3().update_mmap(path).hexdigest()
