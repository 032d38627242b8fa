"""Who this process is in the federation: the site file."""

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from flare_core._errors import ConfigurationError

SiteName: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
]
"""Goes into file names at both ends, so it is short and has no separators."""
SITE_VARIABLE = "FLARE_SITE"
"""Environment variable that names the site file, or is ``off``."""
RUN_VARIABLE = "FLARE_RUN"
"""Environment variable that names the run to take part in."""

_HELP = (
    "run the script with `flare simulate SCRIPT.py --sites 4`, or set "
    f"{SITE_VARIABLE} to the site file of a deployment, or to `off` to train without "
    "a federation"
)


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site's own settings: the script holds no address and no name.

    Attributes:
        name: Name of the site, unique in the federation.
        server: The server's address, e.g. ``"tcp://10.0.0.1:5555"``; empty if there
            is no federation.
        index: Its place among the sites of a simulation, from 0.
        count: How many sites the simulation has.
        folder: Where it keeps its record; by default that of the site file.
        patience_s: Seconds to wait for a silent server before giving up.
        link: How the server is spoken to: a name in ``flare_core.links``.
        spool: The server's spool, if the site runs on the server's machine and may
            share it: models are then files there, and do not travel.
        server_key: The server's public key (Z85); set by ``flare accept``.
        key: File with the site's own secret key, relative to this file.
        run: The run to take part in; if empty, the one that awaits this site.
    """

    name: SiteName
    server: str = ""
    index: Annotated[int, msgspec.Meta(ge=0)] = 0
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    folder: str = ""
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    link: str = "zmq"
    spool: str = ""
    server_key: str = ""
    key: str = ""
    run: str = ""

    @property
    def federated(self) -> bool:
        """Whether there is a server to speak to."""
        return bool(self.server)


def site(file: str | os.PathLike[str] | None = None) -> Site:
    """Return who this process is in the federation.

    Args:
        file: A site file in TOML, or ``"off"``; by default the environment variable
            ``FLARE_SITE``.

    Returns:
        The site's settings.  With ``"off"``, a single site without a server.

    Raises:
        ConfigurationError: If no federation is set up, or the file is wrong.
    """
    named = os.fspath(file) if file is not None else os.environ.get(SITE_VARIABLE, "")
    if not named:
        msg = f"no federation is set up: {SITE_VARIABLE} is not set; {_HELP}"
        raise ConfigurationError(msg)
    if named == "off":
        return Site(name="alone")
    path = Path(named)
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Site)
    except OSError as exc:
        msg = f"site file {path}: {exc.strerror}; {_HELP}"
        raise ConfigurationError(msg) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"site file {path}: {exc}"
        raise ConfigurationError(msg) from exc
    folder = str(path.parent / found.folder)
    spool = str(path.parent / found.spool) if found.spool else ""
    key = str(path.parent / found.key) if found.key else ""
    run = os.environ.get(RUN_VARIABLE, "") or found.run
    return msgspec.structs.replace(found, folder=folder, spool=spool, key=key, run=run)
