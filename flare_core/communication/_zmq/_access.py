"""Who is let in, and how much of the server one peer may have."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias, final

import msgspec

from flare_core.communication._streams import CHUNK_BYTES
from flare_core.communication._zmq._keys import KeyPair

LARGEST_MESSAGE_BYTES = CHUNK_BYTES + 4096
"""A chunk with its header: the longest frame that anybody has to send."""

Why: TypeAlias = Literal[
    "unknown key",
    "said nothing",
    "ended before it said anything",
    "too many strangers",
    "too many connections",
    "too many messages",
    "message without an end",
    "message in too many pieces",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one peer may take of the server.

    Attributes:
        message_bytes: The longest frame; a peer that announces a longer one is cut off
            before anything is allocated for it.  No less than a chunk with its header.
        handshake_s: Seconds in which a connection must prove its key and say
            something.
        strangers: Connections that have not done so yet, at a time; one more, and the
            oldest is cut off.  So nobody without a key can make the server hold more
            than this times ``message_bytes``.
        connections_per_key: Connections of one key at a time; one more is cut off.
        messages_per_s: Messages that a connection may send in the long run, and twice
            as many at once; one that sends more is cut off.
        unread_bytes: Bytes that came over a connection and are no whole message yet,
            or wait to be looked at; one with more is cut off, as nobody sends more than
            eight chunks ahead.  Where the kernel tells how many have come (Linux).
    """

    message_bytes: Annotated[int, msgspec.Meta(ge=LARGEST_MESSAGE_BYTES)] = (
        LARGEST_MESSAGE_BYTES
    )
    handshake_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    strangers: Annotated[int, msgspec.Meta(ge=1)] = 64
    connections_per_key: Annotated[int, msgspec.Meta(ge=1)] = 64
    messages_per_s: Annotated[float, msgspec.Meta(gt=0)] = 5000.0
    unread_bytes: Annotated[int, msgspec.Meta(ge=12 * CHUNK_BYTES)] = 16 * CHUNK_BYTES


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedAway:
    """A connection that was not let in, or was cut off.

    Attributes:
        why: The rule.
        address: Where it came from, as far as that is known.
        key: Its public key, if it was that which is not known.
        user: Who it is, if its key is known.
    """

    why: Why
    address: str
    key: str = ""
    user: str = ""


class Access(Protocol):
    """Decides who is let in; asked from a thread of its own."""

    @property
    def keys(self) -> KeyPair:
        """The server's own."""
        ...

    @property
    def limits(self) -> Limits:
        """What one peer may take."""
        ...

    def admit(self, key: str) -> str:
        """Return whose public key this is; empty if nobody's."""
        ...

    def knows(self, user: str) -> bool:
        """Return whether somebody who was let in still belongs here."""
        ...

    def turned_away(self, event: TurnedAway) -> None:
        """Take note of a connection that was not let in, or was cut off."""
        ...
