"""The key pair of an audit log: ``audit.key`` and ``audit.pub``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, final

from blake3 import blake3
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.types import (
    PrivateKeyTypes,
    PublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from flare_core._errors import ConfigurationError

_FINGERPRINT_BYTES = 16
_Key = TypeVar("_Key", PrivateKeyTypes, PublicKeyTypes)


@final
class AuditKeys:
    """The keys in a folder.

    Args:
        folder: Of the audit log.
    """

    def __init__(self, folder: Path) -> None:
        self._secret_path = folder / "audit.key"
        self._public_path = folder / "audit.pub"

    def secret(self) -> Ed25519PrivateKey:
        """Return the key to sign with, made on first use; for one process at a time.

        Raises:
            ConfigurationError: If a file is no key, the two do not belong together, or
                the secret one is gone.
            OSError: If a file cannot be read or written.
        """
        public = self.public()
        if not self._secret_path.exists():
            if public is not None:
                raise self._gone()
            _write(self._secret_path, _pem(Ed25519PrivateKey.generate()), mode=0o600)
        secret = _parsed(self._secret_path, _secret_of)
        if not isinstance(secret, Ed25519PrivateKey):
            raise _no_key(self._secret_path)
        if public is None:
            _write(self._public_path, _public_pem(secret.public_key()), mode=0o644)
        elif fingerprint(public) != fingerprint(secret.public_key()):
            raise self._strangers()
        return secret

    def public(self) -> Ed25519PublicKey | None:
        """Return the key to verify with; None if there is none.

        Raises:
            ConfigurationError: If the file is no such key.
            OSError: If it cannot be read.
        """
        if not self._public_path.exists():
            return None
        public = _parsed(self._public_path, load_pem_public_key)
        if not isinstance(public, Ed25519PublicKey):
            raise _no_key(self._public_path)
        return public

    def _gone(self) -> ConfigurationError:
        msg = (
            f"{self._secret_path} is gone, and {self._public_path.name} is still here; "
            "put it back, or begin a new audit log in another folder"
        )
        return ConfigurationError(msg)

    def _strangers(self) -> ConfigurationError:
        msg = (
            f"{self._public_path} is not the public key of {self._secret_path.name}; "
            "put back the one that belongs to it"
        )
        return ConfigurationError(msg)


def fingerprint(public: Ed25519PublicKey) -> str:
    """Return a short name of a key: 128 bits of its BLAKE3, in hexadecimal."""
    return blake3(public.public_bytes_raw()).hexdigest(length=_FINGERPRINT_BYTES)


def _pem(secret: Ed25519PrivateKey) -> bytes:
    return secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(public: Ed25519PublicKey) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _secret_of(pem: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(pem, password=None)


def _parsed(path: Path, parse: Callable[[bytes], _Key]) -> _Key:
    pem = path.read_bytes()
    try:
        return parse(pem)
    except (TypeError, ValueError, UnsupportedAlgorithm) as exc:  # or it has a password
        raise _no_key(path) from exc


def _no_key(path: Path) -> ConfigurationError:
    msg = f"{path} is no Ed25519 key in PEM; put back the one that was there"
    return ConfigurationError(msg)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Write a new file, which appears when it is whole and safe."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    unfinished.replace(path)
