"""Seals models with a key that the server does not have.

A sealed model is one row of bytes::

    header   what is in it, in msgpack, filled up to 256 bytes
    salt     16 bytes
    chunks   1 MiB each, the last one shorter, each with a tag of 16 bytes

Each chunk is under ChaCha20-Poly1305 (RFC 8439), with a key of the file's own: HKDF
(RFC 5869) of the group's key, the salt and all that is said of the model.  The number
of the chunk, and whether it is the last one, is its nonce (the STREAM construction,
Hoang et al., CRYPTO 2015, https://eprint.iacr.org/2015/189): so none can be left out,
moved, or taken from another model, site or round.

The salt is a keyed hash of the same and of the model.  So the same model is sealed to
the same bytes, wherever that is done, and what the server sees of two models is whether
they are one.
"""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, final

import msgspec
import numpy as np
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flare_core._errors import ConfigurationError, ProtocolError
from flare_core._model import Array
from flare_core.communication._safetensors import Frame

_KEY_BYTES = 32
_HEADER_BYTES = 256
_SALT_BYTES = 16
_TAG_BYTES = 16
_CHUNK_BYTES = 1 << 20
_FORMAT = 1
_DERIVED = b"flare group key: "
_Chunk = TypeVar("_Chunk", bytes, memoryview)


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a sealed model.

    Attributes:
        kind: ``"update"`` or ``"model"``.
        run: Of which run.
        site: Whose update; empty for a global model.
        number: Of the round, or of the rounds played.
        format: Of the bytes.
    """

    kind: str
    run: str
    site: str = ""
    number: int
    format: int = _FORMAT


@final
class GroupKey:
    """A key that the sites of a group share, and the server does not have.

    Args:
        secret: 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def read(cls, path: Path) -> "GroupKey":
        """Return the key in a file, as `write` writes it.

        Raises:
            ConfigurationError: If there is none.
        """
        try:
            secret = bytes.fromhex(path.read_text(encoding="ascii"))
        except OSError as exc:
            msg = f"group key {path}: {exc.strerror}; `flare group-key` makes one"
            raise ConfigurationError(msg) from exc
        except ValueError as exc:
            msg = f"group key {path}: expected hexadecimal digits, got something else"
            raise ConfigurationError(msg) from exc
        if len(secret) != _KEY_BYTES:
            msg = f"group key {path}: expected {_KEY_BYTES} bytes, got {len(secret)}"
            raise ConfigurationError(msg)
        return cls(secret)

    @classmethod
    def new(cls) -> "GroupKey":
        """Return a key that nobody else has."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    def text(self) -> str:
        """Return it for a file: hexadecimal digits, in a line."""
        return self._secret.hex() + "\n"

    def seal(self, sealed: Sealed, facts: bytes, frames: Sequence[Frame]) -> Array:
        """Return a file, sealed, as a row of bytes.

        Args:
            sealed: What it is.
            facts: What else is said of it, and is not in it: who opens it must know.
            frames: The file, in pieces.
        """
        pieces = [memoryview(frame).cast("B") for frame in frames]
        num_bytes = sum(len(piece) for piece in pieces)
        row: Array = np.zeros(sealed_bytes(num_bytes), np.uint8)
        about = msgspec.msgpack.encode(sealed)
        salt = self._salt(about, facts, pieces)
        row[: len(about)] = np.frombuffer(about, np.uint8)
        place = _HEADER_BYTES
        row[place : place + _SALT_BYTES] = np.frombuffer(salt, np.uint8)
        place += _SALT_BYTES
        cipher = self._cipher(bytes(row[:_HEADER_BYTES]), salt, facts)
        for nonce, chunk in _numbered(_chunks(pieces), num_bytes):
            closed = cipher.encrypt(nonce, chunk, None)
            row[place : place + len(closed)] = np.frombuffer(closed, np.uint8)
            place += len(closed)
        return row

    def open(self, row: Array, wanted: Sealed, facts: bytes) -> memoryview:
        """Return the file that was sealed.

        Args:
            row: Its bytes.
            wanted: What it has to be.
            facts: What else is said of it.

        Raises:
            ProtocolError: If it is something else, was sealed with another key, or was
                changed, or if something else was said of it.
        """
        found = contents(row)
        if found != wanted:
            msg = f"a sealed {_words(found)}, where a {_words(wanted)} was expected"
            raise ProtocolError(msg)
        data = row.data
        header = bytes(data[:_HEADER_BYTES])
        salt = bytes(data[_HEADER_BYTES : _HEADER_BYTES + _SALT_BYTES])
        cipher = self._cipher(header, salt, facts)
        closed = data[_HEADER_BYTES + _SALT_BYTES :]
        num_chunks = -(-len(closed) // (_CHUNK_BYTES + _TAG_BYTES))
        opened = bytearray(len(closed) - num_chunks * _TAG_BYTES)
        size = _CHUNK_BYTES + _TAG_BYTES
        chunks = (closed[start : start + size] for start in range(0, len(closed), size))
        place = 0
        try:
            for nonce, chunk in _numbered(chunks, len(opened)):
                plain = cipher.decrypt(nonce, chunk, None)
                opened[place : place + len(plain)] = plain
                place += len(plain)
        except InvalidTag as exc:
            msg = (
                f"the sealed {_words(wanted)} cannot be opened: it was sealed with "
                "another group key, was changed on its way, or something else was "
                "said of it than what was sealed; have all sites the same `group_key`?"
            )
            raise ProtocolError(msg) from exc
        return memoryview(opened).toreadonly()

    def _cipher(self, header: bytes, salt: bytes, facts: bytes) -> ChaCha20Poly1305:
        about = blake3(header).digest() + blake3(facts).digest()
        derived = HKDF(SHA256(), _KEY_BYTES, salt, _DERIVED + b"file" + about)
        return ChaCha20Poly1305(derived.derive(self._secret))

    def _salt(self, about: bytes, facts: bytes, pieces: Sequence[memoryview]) -> bytes:
        derived = HKDF(SHA256(), _KEY_BYTES, None, _DERIVED + b"salt")
        keyed = blake3(key=derived.derive(self._secret))
        keyed.update(blake3(about).digest() + blake3(facts).digest())
        for piece in pieces:
            keyed.update(piece)
        return keyed.digest()[:_SALT_BYTES]


def sealed_bytes(num_bytes: int) -> int:
    """Return how many bytes a file has when it is sealed."""
    num_chunks = max(1, -(-num_bytes // _CHUNK_BYTES))
    return _HEADER_BYTES + _SALT_BYTES + num_bytes + num_chunks * _TAG_BYTES


def contents(row: Array) -> Sealed:
    """Return what is in a sealed model, as it says itself.

    Raises:
        ProtocolError: If it is none.
    """
    header = bytes(row[:_HEADER_BYTES]).rstrip(b"\0")
    try:
        found = msgspec.msgpack.decode(header, type=Sealed)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"no sealed model: {exc}"
        raise ProtocolError(msg) from exc
    least = sealed_bytes(0)
    if len(row) < least or found.format != _FORMAT:
        msg = f"a sealed model of {len(row)} bytes, in format {found.format}"
        raise ProtocolError(msg)
    return found


def _chunks(pieces: Sequence[memoryview]) -> Iterator[bytes]:
    """Yield all bytes, in chunks; one that is empty if there are none."""
    rest = bytearray()
    any_yet = False
    for piece in pieces:
        for start in range(0, len(piece), _CHUNK_BYTES):
            rest += piece[start : start + _CHUNK_BYTES]
            while len(rest) >= _CHUNK_BYTES:
                yield bytes(rest[:_CHUNK_BYTES])
                del rest[:_CHUNK_BYTES]
                any_yet = True
    if rest or not any_yet:
        yield bytes(rest)


def _numbered(
    chunks: Iterator[_Chunk], num_bytes: int
) -> Iterator[tuple[bytes, _Chunk]]:
    """Yield each chunk with its nonce: its number, and whether it is the last one."""
    last = max(1, -(-num_bytes // _CHUNK_BYTES)) - 1
    for number, chunk in enumerate(chunks):
        yield number.to_bytes(11, "big") + bytes([number == last]), chunk


def _words(sealed: Sealed) -> str:
    whose = f" of site {sealed.site!r}" if sealed.site else ""
    return f"{sealed.kind}{whose} of round {sealed.number} of run {sealed.run}"
