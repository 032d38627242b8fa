"""An encoded model as the plain file that it stands for."""

from collections.abc import Iterator

from flare_core._model import Layout, ModelState
from flare_core.communication._encodings._decode import decode_model
from flare_core.communication._safetensors import Frame, body, file_bytes, header

_RECORD_BYTES = 4
_TENSOR_BYTES = 256


def decoded_file(encoding: str, file: memoryview, base: ModelState) -> Iterator[Frame]:
    """Yield the safetensors file of the model that an encoded one stands for.

    Args:
        encoding: The name of the encoding that made the file.
        file: The whole file; nothing in it is trusted.
        base: What the sender encoded against, bit for bit.

    Raises:
        ProtocolError: If it is no encoded model with the layout of the base.
    """
    yield header(base.layout.tensors)
    for piece in decode_model(encoding, file, base):
        yield body(piece.spec, piece.values)


def most_bytes(layout: Layout) -> int:
    """Return a bound on the size of an encoded model, whatever its values.

    What cannot be compressed grows by less than a part in 64.
    """
    room = _TENSOR_BYTES * len(layout.tensors) + layout.num_bytes // 64
    return file_bytes(layout) + room
