"""``flare server``, ``flare status`` and ``flare roles``."""

import logging
import time
from pathlib import Path
from typing import Annotated, TypeAlias, final

import typer
from rich.console import Console
from rich.table import Table

from flare_core._errors import ConfigurationError
from flare_core.communication import ServerStatus, Status
from flare_core.management._account import HomeOption, account_of
from flare_core.management._deployment import (
    MAY,
    ROLES,
    ServerFolder,
    ServerSettings,
    Service,
    check_server,
)
from flare_core.management._messages import complain, exit_codes, say
from flare_core.management._signals import interrupts
from flare_core.management._wording import counted

_FORMAT = "%(asctime)s %(message)s"
_STYLES = {"ok": "", "note": "yellow", "wrong": "red"}


@final
class _Says(logging.Handler):
    """Prints what is logged, such that what a peer has said cannot steer a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        say(self._console, self.format(record))


server_app = typer.Typer(
    no_args_is_help=True, help="Make a server for real sites, and start it."
)

FolderOption: TypeAlias = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's folder.")
]


@server_app.command("init")
def _init(
    folder: FolderOption,
    *,
    listen: Annotated[
        str, typer.Option(help="Where the server listens; one TCP port.")
    ] = "tcp://0.0.0.0:8470",
    address: Annotated[
        str,
        typer.Option(
            help="Where sites find it, for the invitations, such as "
            "tcp://flare.example.org:8470.  Default: where it listens, if that is one "
            "address."
        ),
    ] = "",
) -> None:
    """Make the keys, the settings and the store of a new server."""
    console = Console()
    with exit_codes():
        ServerFolder(folder).make(_settings(listen, address))
        say(console, f"made a server in {folder}; its settings: {folder}/server.toml")
        say(console, f"start it: flare server start {folder}")


def _settings(listen: str, address: str) -> ServerSettings:
    """Return the settings of a new server.

    Raises:
        ConfigurationError: If it could not be found there.
    """
    try:
        return ServerSettings(listen=listen, address=address)
    except ValueError as exc:
        msg = f"--listen {listen} --address {address or repr('')}: {exc}"
        raise ConfigurationError(msg) from exc


@server_app.command("start")
def _start(folder: FolderOption) -> None:
    """Serve in the foreground, until Ctrl-C or SIGTERM."""
    console = Console()
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=[_Says(console)])
    with exit_codes():
        service = Service(ServerFolder(folder))
        with interrupts(lambda: service.stop("the server was stopped")):
            say(console, f"server listens at {service.endpoint}")
            service.run()
        say(console, "stopped")


@server_app.command("check")
def _check(folder: FolderOption) -> None:
    """Look whether all is as it should be in a server's folder; ends with 1 if not.

    Best while no server runs on it: what that holds is not looked at.
    """
    console = Console()
    with exit_codes():
        if not folder.is_dir():
            msg = f"{folder} is no folder; `flare server init {folder}` makes one"
            raise ConfigurationError(msg)
        wrong = 0
        for one in check_server(ServerFolder(folder)):
            say(console, str(one), style=_STYLES[one.level])
            wrong += one.level == "wrong"
        if wrong:
            complain(f"{counted(wrong, 'thing')} wrong in {folder}", style="bold red")
            raise typer.Exit(1)


def status(*, home: HomeOption = Path()) -> None:
    """Show how a server stands."""
    console = Console()
    with exit_codes(), account_of(home).control() as control:
        found = control.ask(Status(), ServerStatus)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
        say(console, f"server at {found.address}, version {found.version}")
        say(console, f"up since {since}, {counted(found.members, 'member')}")
        states = [f"{count} {state}" for state, count in found.runs.items()]
        say(console, f"runs: {', '.join(states) or 'none'}")


def roles() -> None:
    """Show who may do what."""
    table = Table(title="Who may do what")
    table.add_column("")
    for role in ROLES:
        table.add_column(role, justify="center")
    for act, may in MAY.items():
        table.add_row(str(act), *("yes" if role in may else "-" for role in ROLES))
    Console().print(table)
