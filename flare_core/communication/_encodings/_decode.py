"""Decodes a file against the base, block by block."""

from collections.abc import Iterator
from typing import NamedTuple, final

import numpy as np

from flare_core._errors import ProtocolError
from flare_core._model import DTYPES, Array, ModelState, TensorSpec, bits_of
from flare_core.communication._encodings._choice import codec, encodes
from flare_core.communication._encodings._codec import Codec
from flare_core.communication._encodings._file import located
from flare_core.communication._encodings._grid import BLOCK, spans
from flare_core.communication._encodings._record import Record, RecordError

_LENGTH = np.dtype("<u4")
_BYTE = 8


@final
class Piece(NamedTuple):
    """Some elements of a model.

    Attributes:
        spec: The tensor they belong to.
        start: The place of the first among all elements of the tensor, in C order.
        values: At most `BLOCK` of them along one axis; none if the tensor has none.
            Views of the file, read-only, where the tensor is not encoded.
    """

    spec: TensorSpec
    start: int
    values: Array


def decode_model(encoding: str, file: memoryview, base: ModelState) -> Iterator[Piece]:
    """Return the pieces of a model in the order of its layout, each element once.

    Args:
        encoding: The name of the encoding that made the file.
        file: The whole file; nothing in it is trusted.
        base: What the sender encoded against, bit for bit.  A part of it is read when
            its piece is asked for and not again, so a piece may be written over it.

    Raises:
        ProtocolError: If the file is no encoded model with the layout of the base: at
            once if its header says so, else instead of the piece that is damaged.
            The tensor is named.
        ValueError: If there is no such encoding.
    """
    code = codec(encoding, keep=1.0, feedback=None)
    view = memoryview(file).cast("B")
    return _pieces(encoding, code, located(encoding, view, base.layout), base)


def _pieces(
    encoding: str, code: Codec, found: dict[str, memoryview], base: ModelState
) -> Iterator[Piece]:
    for spec in base.layout.tensors:
        raw = found[spec.name]
        if not spec.num_elements:
            yield Piece(spec, 0, np.empty(0, DTYPES[spec.dtype]))
        elif encodes(encoding, spec):
            yield from _decoded(code, spec, raw, base[spec.name].reshape(-1))
        else:
            yield from _as_they_are(spec, raw)


def _decoded(
    code: Codec, spec: TensorSpec, raw: memoryview, base: Array
) -> Iterator[Piece]:
    for span in spans(len(base), BLOCK):
        try:
            record, raw = _first(raw)
            values = code.decode(record, base[span])
            if span.stop == len(base):
                Record(raw).end()
        except RecordError as exc:
            msg = f"tensor {spec.name!r}, elements from {span.start}: {exc}"
            raise ProtocolError(msg) from exc
        yield Piece(spec, span.start, values)


def _first(raw: memoryview) -> tuple[memoryview, memoryview]:
    """Return the first record, and what follows."""
    length = int(Record(raw).take(_LENGTH, 1)[0])
    rest = raw[_LENGTH.itemsize :]
    if length > len(rest):
        msg = f"expected a record of {length} bytes, got {len(rest)}"
        raise RecordError(msg)
    return rest[:length], rest[length:]


def _as_they_are(spec: TensorSpec, raw: memoryview) -> Iterator[Piece]:
    bits = bits_of(spec.dtype)
    for span in spans(spec.num_elements, BLOCK):
        part = raw[span.start * bits // _BYTE : span.stop * bits // _BYTE]
        yield Piece(spec, span.start, _unpacked(spec, part))


def _unpacked(spec: TensorSpec, part: memoryview) -> Array:
    elements = np.frombuffer(part, np.uint8)
    bits = bits_of(spec.dtype)
    if bits % _BYTE:
        planes = np.unpackbits(elements, bitorder="little").reshape(-1, bits)
        elements = np.packbits(planes, axis=1, bitorder="little").reshape(-1)
    elements.flags.writeable = False
    return elements.view(DTYPES[spec.dtype])
