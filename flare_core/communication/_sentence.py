"""What all messages are made of."""

from typing import Annotated, TypeAlias

import msgspec

from flare_core.communication._streams import SHORT_BYTES

NumBytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
StreamId: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""Of an upload: random, its nonce.  Of a global model: the XXH3-128 of its bytes."""
ServerKey: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^([0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40})?\Z")
]
"""A public key in Z85, or none; sites write it into their site files, as it is."""
Short: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=SHORT_BYTES)]


class Sentence(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sentence; its class name travels as the tag."""
