"""The folder of a server.

::

    server.toml     settings
    server.key      the server's secret key
    server.next     the one that it will have next, if it said so
    admin.key       that of whoever may read this folder
    store.sqlite    members, invitations, runs
    audit.jsonl     what happened, with audit.key and audit.pub
    admin.sock      where the commands of this machine speak to the server
    runs/NAME/      the record of a run
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import tomli_w

from flare_core._errors import ConfigurationError
from flare_core.communication import KeyPair
from flare_core.management._deployment._settings import ServerSettings, read_settings
from flare_core.management._deployment._store import Store

_LONGEST_SOCKET = 100
"""Characters of a socket's path; the kernel takes 107."""


@final
@dataclass(frozen=True, slots=True)
class ServerFolder:
    """Names the files of a server.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """What the server is told."""
        return self.path / "server.toml"

    @property
    def server_key(self) -> Path:
        """The server's secret key."""
        return self.path / "server.key"

    @property
    def next_key(self) -> Path:
        """The one that it will have next, if it said so."""
        return self.path / "server.next"

    @property
    def store(self) -> Path:
        """The database."""
        return self.path / "store.sqlite"

    @property
    def runs(self) -> Path:
        """The folder with a folder for each run."""
        return self.path / "runs"

    @property
    def admin_address(self) -> str:
        """Where the commands of this machine speak to the server.

        Raises:
            ConfigurationError: If its path is too long for a socket.
        """
        path = str(self.path.resolve() / "admin.sock")
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            msg = (
                f"server folder {self.path}: expected a path of at most "
                f"{_LONGEST_SOCKET} bytes for its socket, got {path}; move it up"
            )
            raise ConfigurationError(msg)
        return f"ipc://{path}"

    def make(self, settings: ServerSettings) -> None:
        """Make a new server's folder, readable for its owner only.

        Raises:
            ConfigurationError: If there is a server already, or it cannot be made.
        """
        if self.settings_file.exists():
            msg = f"server folder {self.path}: there is a server already"
            raise ConfigurationError(msg)
        _ = self.admin_address
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            for name in ("server", "admin"):
                write_secret(self.path / f"{name}.key", KeyPair.new().secret)
            tree = {"listen": settings.listen, "address": settings.address}
            Store(self.store).close()
            self.settings_file.write_text(tomli_w.dumps(tree))
        except OSError as exc:
            msg = f"cannot make the server folder {self.path}: {exc}"
            raise ConfigurationError(msg) from exc

    def settings(self) -> ServerSettings:
        """Return the settings; raises as `read_settings`."""
        return read_settings(self.settings_file)

    def keys(self, name: str) -> KeyPair:
        """Return the keys of the ``server`` or the ``admin``."""
        return KeyPair.read(self.path / f"{name}.key")


def write_secret(path: Path, secret: bytes) -> None:
    """Write a secret to a file that only its owner ever could read.

    Raises:
        FileExistsError: If there is such a file: a key is not overwritten.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(secret + b"\n")
        file.flush()
        os.fsync(file.fileno())
