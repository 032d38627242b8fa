"""Messages as frames: a sentence is one, or several if it is long.

A chunk is a header frame, then frames of bytes.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from flare_core._errors import ProtocolError
from flare_core.communication._messages import Chunk, ToServer, ToSite
from flare_core.communication._safetensors import Frame
from flare_core.communication._streams import CHUNK_BYTES

_CHUNK = struct.Struct("<c16sQ")
_MARK = b"D"
"""No message begins so: each is a map of msgpack."""
_Sentence = TypeVar("_Sentence")

_TO_SERVER: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)
_TO_SITE: msgspec.msgpack.Decoder[ToSite] = msgspec.msgpack.Decoder(ToSite)


def encode(message: ToServer | ToSite | Chunk) -> list[Frame]:
    """Return the frames of a message, none longer than a chunk."""
    if isinstance(message, Chunk):
        head = _CHUNK.pack(_MARK, message.stream, message.offset)
        return [head, *message.frames]
    return list(_pieces(msgspec.msgpack.encode(message)))


def decode_to_server(frames: Sequence[Frame]) -> ToServer | Chunk:
    """Return a site's message.

    Raises:
        ProtocolError: If it is none.
    """
    return _decode(frames, _TO_SERVER, "a site")


def decode_to_site(frames: Sequence[Frame]) -> ToSite | Chunk:
    """Return the server's message.

    Raises:
        ProtocolError: If it is none.
    """
    return _decode(frames, _TO_SITE, "a server")


def _pieces(sentence: bytes) -> Iterator[Frame]:
    for start in range(0, len(sentence), CHUNK_BYTES):
        yield sentence[start : start + CHUNK_BYTES]


def _decode(
    frames: Sequence[Frame], decoder: msgspec.msgpack.Decoder[_Sentence], whose: str
) -> _Sentence | Chunk:
    try:
        if frames and frames[0][:1] == _MARK:
            _, stream, offset = _CHUNK.unpack(frames[0])
            return Chunk(stream, offset, frames[1:])
        return decoder.decode(frames[0] if len(frames) == 1 else b"".join(frames))
    except (msgspec.DecodeError, ValueError, RecursionError, struct.error) as exc:
        msg = f"no message of {whose}: {exc}"
        raise ProtocolError(msg) from exc
