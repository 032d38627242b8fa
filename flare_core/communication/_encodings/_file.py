"""An encoded model as a safetensors file.

An encoded tensor is there under its name as bytes (``"U8"``, one axis): for each block
the length of its record (u32, little-endian), then the record.  The others are as they
are.  Tensors follow each other as in any layout, larger element types first and then by
name, so that what is not encoded is aligned.
"""

from typing import NoReturn

from flare_core._errors import ProtocolError
from flare_core._model import DTYPES, Layout, TensorSpec
from flare_core.communication._encodings._choice import encodes
from flare_core.communication._safetensors import Entry, header, parsed

_METADATA_BYTES = 4_096
_LARGE = 1 << 48


def in_file_order(encoding: str, layout: Layout) -> list[TensorSpec]:
    """Return the tensors in the order in which their bytes are in the file."""

    def place(spec: TensorSpec) -> tuple[int, str]:
        size = 1 if encodes(encoding, spec) else DTYPES[spec.dtype].itemsize
        return -size, spec.name

    return sorted(layout.tensors, key=place)


def as_bytes(spec: TensorSpec, num_bytes: int) -> TensorSpec:
    """Return what the file says of an encoded tensor."""
    return TensorSpec(spec.name, "U8", (num_bytes,), spec.kind)


def located(encoding: str, file: memoryview, layout: Layout) -> dict[str, memoryview]:
    """Return the bytes of each tensor in a file.

    Args:
        encoding: Its name.
        file: The whole file.
        layout: That of the model, not of the file.

    Raises:
        ProtocolError: If the file holds anything else than an encoded model of this
            layout; the tensor is named.
    """
    tensors = in_file_order(encoding, layout)
    most = _most_header_bytes(encoding, tensors)
    entries, data = parsed(file, most_header_bytes=most)
    _check_names(entries, layout)
    found: dict[str, memoryview] = {}
    position = 0
    for spec in tensors:
        entry = entries[spec.name]
        expected = _expected(encoding, spec, entry)
        span = (position, position + expected.num_bytes)
        if (entry.dtype, entry.shape) != (expected.dtype, expected.shape):
            _refuse(spec, expected, f"{entry.dtype} {entry.shape}")
        if entry.data_offsets != span or span[1] > len(data):
            _refuse(spec, f"bytes {span} of {len(data)}", entry.data_offsets)
        found[spec.name] = data[slice(*span)]
        position = span[1]
    if position != len(data):
        msg = f"expected {position} bytes after the header, got {len(data)}"
        raise ProtocolError(msg)
    return found


def _expected(encoding: str, spec: TensorSpec, entry: Entry) -> TensorSpec:
    """Return what the file should say: of an encoded tensor, any number of bytes."""
    if not encodes(encoding, spec):
        return spec
    return as_bytes(spec, entry.shape[0] if entry.shape else 0)


def _refuse(spec: TensorSpec, expected: object, got: object) -> NoReturn:
    msg = f"tensor {spec.name!r}: expected {expected} in the file, got {got}"
    raise ProtocolError(msg)


def _most_header_bytes(encoding: str, tensors: list[TensorSpec]) -> int:
    """Return a bound, so that no peer makes this side parse more than it would send."""
    longest = [
        as_bytes(spec, _LARGE) if encodes(encoding, spec) else spec for spec in tensors
    ]
    return 2 * len(header(longest)) + _METADATA_BYTES


def _check_names(entries: dict[str, Entry], layout: Layout) -> None:
    missing = sorted(layout.classes.keys() - entries.keys())
    if missing:
        msg = f"tensor {missing[0]!r}: expected in the file, got none of that name"
        raise ProtocolError(msg)
    strange = sorted(entries.keys() - layout.classes.keys())
    if strange:
        msg = f"tensor {strange[0]!r}: expected no such tensor, got one in the file"
        raise ProtocolError(msg)
