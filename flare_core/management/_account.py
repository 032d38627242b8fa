"""Who a command speaks for: the admin of a server's folder, or a member."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias, final

import typer

from flare_core._errors import ConfigurationError
from flare_core._site import site as read_site
from flare_core.application import remember, secured_as
from flare_core.communication import Control, Secured
from flare_core.management._deployment import ADMIN, ServerFolder

SITE_FILE = "site.toml"
KEY_FILE = "site.key"

HomeOption: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="FLARE_HOME",
        help="A server's folder, or the one that `flare accept` made.  Default: the "
        "current folder.",
    ),
]


@final
@dataclass(frozen=True, slots=True)
class Account:
    """What is needed to speak to a server as somebody.

    Attributes:
        name: As whom.
        address: The server's.
        secured: The keys.
        learnt: Told of the public key that the server will have soon.
    """

    name: str
    address: str
    secured: Secured
    learnt: Callable[[str], None] = lambda _: None

    def control(self) -> Control:
        """Return a line to the server's desk."""
        return Control(
            self.address, name=self.name, secured=self.secured, learnt=self.learnt
        )


def account_of(home: Path) -> Account:
    """Return the account that a folder holds.

    Args:
        home: A server's folder, that of a member, or a site file.

    Raises:
        ConfigurationError: If it holds none.
    """
    folder = ServerFolder(home)
    if folder.settings_file.exists():
        server = folder.keys("server").public
        secured = Secured(folder.keys(ADMIN), server)
        return Account(ADMIN, folder.admin_address, secured)
    site = read_site(site_file_of(home))
    found = secured_as(site)
    if found is None:
        msg = (
            f"{site_file_of(home)}: expected a site file with keys, as `flare accept` "
            "writes it, got one without"
        )
        raise ConfigurationError(msg)
    return Account(site.name, site.server, found, partial(remember, site))


def site_file_of(home: Path) -> Path:
    """Return the site file of a folder, or the file itself.

    Raises:
        ConfigurationError: If there is none.
    """
    path = home / SITE_FILE if home.is_dir() else home
    if not path.is_file() and ServerFolder(home).settings_file.exists():
        msg = (
            f"{home.absolute()}: expected a site's folder, got a server's: name that "
            "of a member with --home; `flare accept INVITATION` makes one"
        )
        raise ConfigurationError(msg)
    if not path.is_file():
        msg = (
            f"{home.absolute()}: expected a server's folder or a {SITE_FILE}, "
            "found neither; `flare accept INVITATION` makes one, or name another "
            "folder with --home"
        )
        raise ConfigurationError(msg)
    return path
