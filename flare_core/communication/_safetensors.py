"""A model as frames that, joined, are a valid safetensors file.

The first frame is the file's header (its length, JSON, padding to 8 bytes), then one
frame per tensor.  Nothing is copied but packed 4- and 6-bit types.  Format:
https://huggingface.co/docs/safetensors/index#format
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, TypeAlias

import msgspec
import numpy as np

from flare_core._errors import ProtocolError
from flare_core._model import (
    DTYPES,
    Array,
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


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


def pack(state: ModelState) -> list[Frame]:
    """Return the frames of a model; they are views of its arrays where possible.

    Raises:
        ValueError: If a tensor of a 4- or 6-bit type does not fill whole bytes.
    """
    bodies = [_body(spec, state[spec.name]) for spec in state.layout.tensors]
    ends = itertools.accumulate(len(body) for body in bodies)
    header: dict[str, object] = {_METADATA: {"format": "pt"}}
    for spec, body, end in zip(state.layout.tensors, bodies, ends, strict=True):
        header[spec.name] = _Entry(spec.dtype, spec.shape, (end - len(body), end))
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(_ALIGNMENT, "little") + text, *bodies]


def unpack(
    frames: Sequence[Frame], *, classes: Mapping[str, TensorClass] | None = None
) -> ModelState:
    """Return the model in these frames; its arrays are read-only views of them.

    Args:
        frames: As `pack` made them.
        classes: Class of a tensor by name, where it is not a parameter or counter.

    Raises:
        ProtocolError: If they are no safetensors file cut at its tensors.
    """
    if not frames:
        msg = "a model needs a header frame, got no frame"
        raise ProtocolError(msg)
    entries = _header(memoryview(frames[0]))
    bodies = frames[1:]
    if len(entries) != len(bodies):
        msg = f"the header names {len(entries)} tensors, got {len(bodies)} frames"
        raise ProtocolError(msg)
    position = 0
    arrays: dict[str, Array] = {}
    for (name, entry), body in zip(entries.items(), bodies, strict=True):
        if entry.data_offsets != (position, position + len(body)):
            msg = (
                f"tensor {name!r}: expected bytes {entry.data_offsets}, "
                f"got {(position, position + len(body))}"
            )
            raise ProtocolError(msg)
        position += len(body)
        arrays[name] = _array(name, entry, body)
    return ModelState(arrays, classes=classes)


def digest(frames: Iterable[Frame]) -> str:
    """Return the SHA-256, in hexadecimal, of the file that the frames make."""
    sha256 = hashlib.sha256()
    for frame in frames:
        sha256.update(frame)
    return sha256.hexdigest()


def _header(frame: memoryview) -> dict[str, _Entry]:
    length = int.from_bytes(frame[:_ALIGNMENT], "little")
    text = frame[_ALIGNMENT:]
    if length != len(text) or length > _MAX_HEADER_BYTES:
        msg = f"a header of {length} bytes was announced, got {len(text)}"
        raise ProtocolError(msg)
    try:
        header = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        header.pop(_METADATA, None)
        return {
            name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"no safetensors header: {exc}"
        raise ProtocolError(msg) from exc


def _body(spec: TensorSpec, array: Array) -> Frame:
    if bits_of(spec.dtype) % 8:
        return _packed(spec, array)
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _packed(spec: TensorSpec, array: Array) -> Frame:
    bits = bits_of(spec.dtype)
    if spec.num_elements * bits % 8:
        msg = f"tensor {spec.name!r}: {spec} does not fill whole bytes"
        raise ValueError(msg)
    elements = array.reshape(-1, 1).view(np.uint8)
    planes = np.unpackbits(elements, axis=1, count=bits, bitorder="little")
    return np.packbits(planes, bitorder="little").tobytes()


def _array(name: str, entry: _Entry, body: Frame) -> Array:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        msg = f"tensor {name!r}: no such type as {entry.dtype!r}"
        raise ProtocolError(msg)
    num_elements = math.prod(entry.shape)
    bits = bits_of(entry.dtype)
    if len(body) * 8 != num_elements * bits:
        msg = (
            f"tensor {name!r}: {entry.dtype} {entry.shape} needs "
            f"{num_elements * bits // 8} bytes, got {len(body)}"
        )
        raise ProtocolError(msg)
    raw = np.frombuffer(body, np.uint8)
    if bits % 8:
        planes = np.unpackbits(raw, bitorder="little").reshape(num_elements, bits)
        raw = np.packbits(planes, axis=1, bitorder="little").reshape(-1)
    raw.flags.writeable = False  # ZeroMQ lends its buffers for writing
    try:
        return raw.view(dtype).reshape(entry.shape)
    except ValueError as exc:  # too many axes, or an empty one beside a huge one
        msg = f"tensor {name!r}: {exc}"
        raise ProtocolError(msg) from exc
