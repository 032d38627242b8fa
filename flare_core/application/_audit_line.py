"""A line of an audit log: JSON, chained to the line before by its BLAKE3.

::

    {"seq":7,"time":…,"event":…,"run":…,"site":…, facts…, "prev":…,"hash":…}
    {"seq":8,"time":…,"event":"signed", … ,"key":…,"prev":…,"signature":…,"hash":…}

A hash is that of the line's bytes without the hash itself, and a signature that of
the line without both; so every byte counts, not only what it means.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

Scalar: TypeAlias = str | int | float | bool | None
Fact: TypeAlias = Scalar | Sequence[Scalar]

SIGNED = "signed"
TORN = "torn"
LOST = "lost"
_HASH = b',"hash":"'
_SIGNATURE = b',"signature":"'
_HASH_BYTES = len(_HASH) + 64 + len(b'"}')
_SIGNATURE_BYTES = len(_SIGNATURE) + 128 + len(b'"')


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a log ends.

    Attributes:
        seq: The number of its last line, counted from 1; 0 if it is empty.
        hash: Of that line.
    """

    seq: int = 0
    hash: str = "0" * 64


class Line(msgspec.Struct, frozen=True):
    """What every line has; facts of its own are left out.

    Attributes:
        seq: Its number, counted from 1.
        time: When it was written: ISO 8601, UTC.
        event: What happened.
        run: In which run, if in one.
        site: At which site, if at one.
        prev: The hash of the line before.
        hash: Its own.
        key: Fingerprint of the key, if it is a signature; else a fact like others.
    """

    seq: int
    time: str
    event: str
    run: str
    site: str
    prev: str
    hash: str
    key: object = ""

    @property
    def place(self) -> Place:
        """Where the log ends, if this is its last line."""
        return Place(self.seq, self.hash)


def write_line(
    facts: Mapping[str, Fact], after: Place, secret: Ed25519PrivateKey | None = None
) -> tuple[bytes, Place]:
    """Return a line with its newline, and where the log ends then.

    Args:
        facts: Event, run, site and what else there is to say.
        after: Where the log ends now.
        secret: The key, if it is to be signed.
    """
    seq = after.seq + 1
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    tree = {"seq": seq, "time": now, **facts, "prev": after.hash}
    body = msgspec.json.encode(tree)
    if secret is not None:
        body = body[:-1] + _SIGNATURE + secret.sign(body).hex().encode() + b'"}'
    digest = blake3(body).hexdigest()
    return body[:-1] + _HASH + digest.encode() + b'"}\n', Place(seq, digest)


def read_line(raw: bytes) -> Line:
    """Return what a line says, without its newline.

    Raises:
        ValueError: If it is no such line, or was changed; it says which.
    """
    body, end = raw[:-_HASH_BYTES], raw[-_HASH_BYTES:]
    if not (end.startswith(_HASH) and end.endswith(b'"}')):
        msg = "is no line of an audit log, or was changed"
        raise ValueError(msg)
    stated = end[len(_HASH) : -len(b'"}')]
    if blake3(body + b"}").hexdigest().encode() != stated:
        msg = "was changed after it was written"
        raise ValueError(msg)
    try:
        return msgspec.json.decode(raw, type=Line)
    except msgspec.DecodeError as exc:
        msg = f"is no line of an audit log: {exc}"
        raise ValueError(msg) from exc


def holds(raw: bytes, public: Ed25519PublicKey) -> bool:
    """Return whether a line has a signature of this key."""
    body = raw[:-_HASH_BYTES]
    text = body[-_SIGNATURE_BYTES:]
    if not (text.startswith(_SIGNATURE) and text.endswith(b'"')):
        return False
    try:
        signature = bytes.fromhex(text[len(_SIGNATURE) : -1].decode())
        public.verify(signature, body[:-_SIGNATURE_BYTES] + b"}")
    except (ValueError, InvalidSignature):
        return False
    return True
