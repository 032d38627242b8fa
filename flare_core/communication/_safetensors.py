"""A model as one stream of bytes: that of a safetensors file.

The file is a header (its length, JSON, padding to 8 bytes) and the bytes of all tensors
in the order of the layout.  It is the same file on the wire, in the server's spool and
in the run folder.  Nothing is copied but packed 4- and 6-bit types.  Format:
https://huggingface.co/docs/safetensors/index#format
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, TypeAlias

import msgspec
import numpy as np

from flare_core._errors import ProtocolError
from flare_core._model import (
    DTYPES,
    Array,
    Layout,
    ModelState,
    TensorClass,
    TensorSpec,
    bits_of,
)

Frame: TypeAlias = bytes | memoryview
_MAX_HEADER_BYTES = 100_000_000
"""The limit that safetensors sets itself."""
_ALIGNMENT = 8
_METADATA = "__metadata__"
_Extent: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a header says of one tensor.

    Attributes:
        dtype: The code of its type.
        shape: The extent of each axis.
        data_offsets: Where its bytes begin and end, from the end of the header.
    """

    dtype: str
    shape: Annotated[tuple[_Extent, ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Extent, _Extent]


def header(tensors: Iterable[TensorSpec]) -> bytes:
    """Return what stands in the file before the bytes of these tensors, in order."""
    entries: dict[str, object] = {_METADATA: {"format": "pt"}}
    end = 0
    for spec in tensors:
        begin, end = end, end + spec.num_bytes
        entries[spec.name] = Entry(spec.dtype, spec.shape, (begin, end))
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_ALIGNMENT, "little") + text


def file_bytes(layout: Layout) -> int:
    """Return the size of a file with a model of this layout."""
    return len(header(layout.tensors)) + layout.num_bytes


def pack(state: ModelState) -> list[Frame]:
    """Return the file of a model in pieces: its header, then a piece per tensor.

    The pieces are views of the model's arrays where possible.

    Raises:
        ValueError: If a tensor of a 4- or 6-bit type does not fill whole bytes.
    """
    tensors = state.layout.tensors
    bodies = [body(spec, state[spec.name]) for spec in tensors]
    return [header(tensors), *bodies]


def body(spec: TensorSpec, array: Array) -> Frame:
    """Return the bytes of some elements of a tensor: a view, but of packed types.

    Raises:
        ValueError: If elements of a 4- or 6-bit type do not fill whole bytes.
    """
    if bits_of(spec.dtype) % 8:
        return _packed(spec, array)
    return memoryview(array.reshape(-1).view(np.uint8).data)


def unpack(
    file: Frame, *, classes: Mapping[str, TensorClass] | None = None
) -> ModelState:
    """Return the model in a file; its arrays are read-only views of it.

    Args:
        file: All bytes of it, in memory or mapped.
        classes: Class of a tensor by name, where it is not a parameter or counter.

    Raises:
        ProtocolError: If it is no safetensors file.
    """
    found, data = parsed(memoryview(file).cast("B"))
    entries = dict(sorted(found.items(), key=lambda one: one[1].data_offsets))
    ends = [entry.data_offsets[1] for entry in entries.values()]
    begins = [entry.data_offsets[0] for entry in entries.values()]
    if begins != [0, *ends[:-1]][: len(begins)] or sorted(ends) != ends:
        msg = "the tensors do not follow each other without gaps"
        raise ProtocolError(msg)
    if len(data) != (ends[-1] if ends else 0):
        msg = f"the header announces {ends[-1] if ends else 0} bytes, got {len(data)}"
        raise ProtocolError(msg)
    arrays = {
        name: _array(name, entry, data[slice(*entry.data_offsets)])
        for name, entry in entries.items()
    }
    return ModelState(arrays, classes=classes)


def header_bytes(file: Frame) -> int:
    """Return how long the header of a file says it is, its length included."""
    return _ALIGNMENT + int.from_bytes(file[:_ALIGNMENT], "little")


def parsed(
    file: memoryview, *, most_header_bytes: int = _MAX_HEADER_BYTES
) -> tuple[dict[str, Entry], memoryview]:
    """Return what the header of a file says of each tensor, and the data behind it.

    Args:
        file: All bytes of it.
        most_header_bytes: A longer header is not looked at.

    Raises:
        ProtocolError: If there is no such header.
    """
    end = header_bytes(file)
    if end > min(len(file), most_header_bytes):
        msg = (
            f"expected a header of at most {most_header_bytes} bytes in the file, got "
            f"{end} of {len(file)}"
        )
        raise ProtocolError(msg)
    try:
        raw = msgspec.json.decode(file[_ALIGNMENT:end], type=dict[str, msgspec.Raw])
        raw.pop(_METADATA, None)
        entries = {
            name: msgspec.json.decode(one, type=Entry) for name, one in raw.items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"no safetensors header: {exc}"
        raise ProtocolError(msg) from exc
    return entries, file[end:]


def _packed(spec: TensorSpec, array: Array) -> Frame:
    bits = bits_of(spec.dtype)
    if array.size * bits % 8:
        msg = f"tensor {spec.name!r}: {spec} does not fill whole bytes"
        raise ValueError(msg)
    elements = array.reshape(-1, 1).view(np.uint8)
    planes = np.unpackbits(elements, axis=1, count=bits, bitorder="little")
    return np.packbits(planes, bitorder="little").tobytes()


def _array(name: str, entry: Entry, raw_bytes: memoryview) -> Array:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        msg = f"tensor {name!r}: no such type as {entry.dtype!r}"
        raise ProtocolError(msg)
    num_elements = math.prod(entry.shape)
    bits = bits_of(entry.dtype)
    if len(raw_bytes) * 8 != num_elements * bits:
        msg = (
            f"tensor {name!r}: {entry.dtype} {entry.shape} needs "
            f"{num_elements * bits // 8} bytes, got {len(raw_bytes)}"
        )
        raise ProtocolError(msg)
    raw = np.frombuffer(raw_bytes, np.uint8)
    if bits % 8:
        planes = np.unpackbits(raw, bitorder="little").reshape(num_elements, bits)
        raw = np.packbits(planes, axis=1, bitorder="little").reshape(-1)
    raw.flags.writeable = False
    try:
        return raw.view(dtype).reshape(entry.shape)
    except ValueError as exc:  # too many axes, or an empty one beside a huge one
        msg = f"tensor {name!r}: {exc}"
        raise ProtocolError(msg) from exc
