"""Encodes a model against a base, block by block, into a file."""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

from flare_core._model import ModelState, TensorSpec
from flare_core.communication._encodings._choice import codec, encodes
from flare_core.communication._encodings._codec import Codec
from flare_core.communication._encodings._delta import Feedback
from flare_core.communication._encodings._disk import on_disk
from flare_core.communication._encodings._file import as_bytes, in_file_order
from flare_core.communication._encodings._grid import BLOCK, spans
from flare_core.communication._encodings._residual import Residual
from flare_core.communication._safetensors import Frame, body, header

_LENGTH_BYTES = 4
_WITH_FEEDBACK = "topk"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A model that is ready to be sent.

    Attributes:
        frames: Joined, a safetensors file: its header, then its data, a mapped file
            that nobody else can see and that is gone when the frame is.
        bodies: The bytes of each tensor in it, by name.
        error: The relative L2 error of what arrives: ||decoded - values|| over
            ||values - base||, over all encoded tensors; 0 if nothing is lost.  With
            error feedback, what the residual keeps over what was to be sent:
            ||residual after|| over ||values - base + residual before||.  NaN if
            something is not finite.
    """

    frames: list[Frame]
    bodies: dict[str, Frame]
    error: float


def encode_model(
    encoding: str,
    values: ModelState,
    base: ModelState,
    *,
    folder: Path,
    keep: float = 1.0,
    residual: Residual | None = None,
) -> Encoded:
    """Return a model as what a receiver who holds the base needs to know of it.

    The same arguments give the same bytes on any machine (``xor``: with the same
    version of zstd).  A tensor with a NaN or an infinity has one when it is decoded.

    Args:
        encoding: ``"bf16"``, ``"int8"``, ``"int4"``, ``"topk"`` or ``"xor"``.
        values: What to send.
        base: What the receiver holds, bit for bit.
        folder: Where there is room for the encoded model.
        keep: The fraction of the elements that ``topk`` sends.
        residual: What ``topk`` could not send before, and where it leaves what it
            cannot send now; commit it when the update has been accepted.  None sends
            only what fits and forgets the rest.

    Raises:
        ConfigurationError: If the folder has no room, or the residual is damaged.
        ValueError: If there is no such encoding or fraction, or if the two models
            differ in their layout.
    """
    if values.layout != base.layout:
        msg = f"expected values with the layout of the base {base}, got {values}"
        raise ValueError(msg)
    with (
        _feedback(encoding, residual, base) as feedback,
        on_disk(folder),
        tempfile.TemporaryFile(dir=folder) as file,
    ):
        code = codec(encoding, keep=keep, feedback=feedback)
        tensors = [
            _written(file, code, spec, values, base)
            if encodes(encoding, spec)
            else _copied(file, spec, values)
            for spec in in_file_order(encoding, base.layout)
        ]
        data = _mapped(file)
        return Encoded(
            frames=[header(tensors), data],
            bodies=dict(_bodies(tensors, data)),
            error=code.error,
        )


def _feedback(
    encoding: str, residual: Residual | None, base: ModelState
) -> AbstractContextManager[Feedback | None]:
    if residual is None or encoding != _WITH_FEEDBACK:
        return nullcontext()
    return residual.next_one(base.layout)


def _written(
    file: IO[bytes], code: Codec, spec: TensorSpec, values: ModelState, base: ModelState
) -> TensorSpec:
    """Write the records of a tensor; return what the file's header says of it."""
    begin = file.tell()
    new, old = values[spec.name].reshape(-1), base[spec.name].reshape(-1)
    for span in spans(spec.num_elements, BLOCK):
        record = code.encode(new[span], old[span])
        file.write(len(record).to_bytes(_LENGTH_BYTES, "little"))
        file.write(record)
    return as_bytes(spec, file.tell() - begin)


def _copied(file: IO[bytes], spec: TensorSpec, values: ModelState) -> TensorSpec:
    """Write a tensor as it is."""
    array = values[spec.name].reshape(-1)
    for span in spans(spec.num_elements, BLOCK):
        file.write(body(spec, array[span]))
    return spec


def _mapped(file: IO[bytes]) -> memoryview:
    file.flush()
    if not file.tell():
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _bodies(tensors: list[TensorSpec], data: memoryview) -> Iterator[tuple[str, Frame]]:
    position = 0
    for spec in tensors:
        yield spec.name, data[position : position + spec.num_bytes]
        position += spec.num_bytes
