"""The settings of a server, as a file in TOML."""

import re
from pathlib import Path
from typing import Annotated

import msgspec

from flare_core._errors import ConfigurationError
from flare_core.communication import Limits

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_ADDRESS = re.compile(r"tcp://(?P<host>\[[^\]\s]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65_535
_EVERYWHERE = ("0.0.0.0", "[::]", "*")  # noqa: S104 - nothing is bound here


class Region(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[region]``: this server is a site of another one, above.

    Attributes:
        site: The site file, or its folder, that ``flare accept`` wrote for this server;
            relative to the server's folder.
        sites: Sites of the region, which a run of the server above waits for.
        quorum: Least number of their updates that a sum is made of, once sites are
            gone; all, if not set.
    """

    site: Annotated[str, msgspec.Meta(min_length=1)]
    sites: Annotated[int, msgspec.Meta(ge=1)]
    quorum: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.quorum is not None and self.quorum > self.sites:
            msg = (
                f"region.quorum = {self.quorum} can never be met by region.sites = "
                f"{self.sites}"
            )
            raise ValueError(msg)


class ServerSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What ``server.toml`` says; a key nobody knows is an error.

    Attributes:
        listen: Where the server listens, e.g. ``"tcp://0.0.0.0:8470"``.
        address: Where sites find it, e.g. ``"tcp://flare.example.org:8470"``; it
            stands in the invitations.  If empty, where the server listens.
        patience_s: Seconds without a word after which a site is given up.
        num_threads: Cores that each run may average on; 0 takes up to four.
        old_key_s: Seconds for which a key that was changed still opens the door, so
            that no run in progress is lost.
        limits: What one peer may take of the server.
        region: Whose runs this server takes part in, as the server of a region.
    """

    listen: str
    address: str = ""
    patience_s: _Positive = 60.0
    num_threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    old_key_s: _Positive = 86_400.0
    limits: Limits = Limits()
    region: Region | None = None

    def __post_init__(self) -> None:
        host = _host("listen", self.listen)
        if self.address:
            _host("address", self.address)
        elif host in _EVERYWHERE:
            msg = (
                f"listen {self.listen} is every address of this machine: name the one "
                "that sites find it at, address tcp://HOST:PORT"
            )
            raise ValueError(msg)


def read_settings(path: Path) -> ServerSettings:
    """Return the settings in a file.

    Raises:
        ConfigurationError: If it cannot be read, a key is unknown, or a value does not
            fit.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ServerSettings)
    except OSError as exc:
        msg = (
            f"settings {path}: {exc.strerror}; `flare server init {path.parent}` "
            "makes a server there"
        )
        raise ConfigurationError(msg) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        known = ", ".join(
            (
                *ServerSettings.__struct_fields__,
                *_inner("limits", Limits.__struct_fields__),
                *_inner("region", Region.__struct_fields__),
            )
        )
        msg = f"settings {path}: {exc}; the keys are {known}"
        raise ConfigurationError(msg) from exc


def _host(key: str, address: str) -> str:
    """Return the host in an address; raises `ValueError` if it is none."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > _LAST_PORT:
        msg = f"{key}: expected tcp://HOST:PORT, got {address!r}"
        raise ValueError(msg)
    return found["host"]


def _inner(table: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{table}.{name}" for name in names)
