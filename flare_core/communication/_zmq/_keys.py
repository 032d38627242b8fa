"""CURVE keys: pairs, and what is known of the other side."""

import hashlib
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, final

import zmq
from zmq.utils import z85

from flare_core._errors import ConfigurationError

_CHARACTERS = 40
_BYTES = 32
_INVITATION = b"flare invitation"


@final
@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, in Z85.

    Attributes:
        public: Known to others.
        secret: Known to nobody else.
    """

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"  # a secret is nothing for a log

    @classmethod
    def new(cls) -> Self:
        """Return a fresh one."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def from_token(cls, token: str) -> Self:
        """Return the pair that the token of an invitation stands for.

        Whoever has the token can prove it by a handshake, and it never travels.  The
        server keeps the public key alone, from which no token can be found.

        Args:
            token: Text with at least 256 bits of chance in it.
        """
        seed = hashlib.blake2b(token.encode(), digest_size=_BYTES, person=_INVITATION)
        secret = z85.encode(seed.digest())
        return cls(zmq.curve_public(secret), secret)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the pair whose secret key is in a file.

        Raises:
            ConfigurationError: If there is no such file, or it holds no key.
        """
        try:
            secret = path.read_bytes().strip()
        except OSError as exc:
            msg = (
                f"key file {path}: {exc.strerror}; `flare accept` makes one at a "
                "member, and `flare server init` at a server"
            )
            raise ConfigurationError(msg) from exc
        if not is_key(secret.decode(errors="replace")):
            msg = f"key file {path}: expected a secret key of 40 characters (Z85)"
            raise ConfigurationError(msg)
        return cls(zmq.curve_public(secret), secret)


@final
@dataclass(frozen=True, slots=True)
class Secured:
    """What a site needs to speak to a server under CURVE.

    Attributes:
        keys: The site's own.
        server: The server's public key.
        next_server: The one that it said it would have soon; empty if it did not.
    """

    keys: KeyPair
    server: bytes
    next_server: bytes = b""

    @property
    def swapped(self) -> Self:
        """What to try next where nobody answered to the server's key."""
        if not self.next_server:
            return self
        return replace(self, server=self.next_server, next_server=self.server)


def is_key(text: str) -> bool:
    """Return whether this can be a key, in Z85."""
    try:
        return len(text) == _CHARACTERS and len(z85.decode(text)) == _BYTES
    except (ValueError, KeyError, struct.error):
        return False


def learnt(secured: Secured | None, key: str) -> Secured | None:
    """Return the keys with the one that a server said it would have soon."""
    if secured is None or not is_key(key) or key.encode() == secured.server:
        return secured
    return replace(secured, next_server=key.encode())
