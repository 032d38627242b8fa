"""``flare invite``, ``accept``, ``members``, ``revoke`` and ``rotate``."""

import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from flare_core._errors import ConfigurationError
from flare_core.communication import (
    AnnounceKey,
    ChangeKey,
    Done,
    Invitation,
    Invite,
    ListMembers,
    Member,
    NextKey,
    Revoke,
)
from flare_core.management._account import HomeOption, account_of
from flare_core.management._deployment import ROLES, ServerFolder
from flare_core.management._enrolment import accept_invitation, rotate_key
from flare_core.management._messages import exit_codes, say

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHOWN_KEY = 12


def invite(
    name: Annotated[str, typer.Argument(help="The new member's name.")],
    *,
    role: Annotated[str, typer.Option(help="site, researcher, observer or admin.")] = (
        "site"
    ),
    valid: Annotated[
        str, typer.Option(help="How long it holds: 7d, 12h, 30m, 90s.")
    ] = "7d",
    out: Annotated[
        Path | None, typer.Option(help="The file to write.  Default: print it.")
    ] = None,
    home: HomeOption = Path(),
) -> None:
    """Print an invitation: a file that lets its holder enrol, once."""
    with exit_codes(), account_of(home).control() as control:
        request = _checked(name, role, _seconds(valid))
        invitation = control.ask(request, Invitation)
        text = tomli_w.dumps(msgspec.to_builtins(invitation))
        if out is None:
            sys.stdout.write(text)
            return
        try:
            fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o600)  # of a file that was there, too
                file.write(text)
        except OSError as exc:
            msg = f"invitation {out}: {exc.strerror}"
            raise ConfigurationError(msg) from exc
        say(Console(), f"give {out} to {name}, and to nobody else; it holds {valid}")


def accept(
    file: Annotated[Path, typer.Argument(help="The invitation.")],
    *,
    home: Annotated[
        Path,
        typer.Option(
            "--home",
            envvar="FLARE_HOME",
            help="The folder for the site file and the key.  Default: the current one.",
        ),
    ] = Path(),
) -> None:
    """Enrol at a server: makes a key pair here, and a site file."""
    with exit_codes():
        path, identity = accept_invitation(file, home)
        say(Console(), f"{identity.name!r} is a {identity.role} now; {path} says so")


def members(*, home: HomeOption = Path()) -> None:
    """List the members of a server."""
    table = Table(box=None)
    for column in ("name", "role", "since", "key", ""):
        table.add_column(column)
    with exit_codes(), account_of(home).control() as control:
        for member in control.ask(ListMembers(), list[Member]):
            since = time.strftime("%Y-%m-%d", time.localtime(member.since))
            keys = " ".join(key[:_SHOWN_KEY] for key in member.keys)
            revoked = "" if member.revoked is None else "revoked"
            table.add_row(member.name, member.role, since, keys, revoked)
        Console().print(table)


def revoke(
    name: Annotated[str, typer.Argument(help="Whose key.")],
    *,
    home: HomeOption = Path(),
) -> None:
    """Let a member in no more, and cut off at once what is open."""
    with exit_codes(), account_of(home).control() as control:
        control.ask(Revoke(name=name), Done)
        say(Console(), f"{name!r} is let in no more")


def rotate(
    *,
    now: Annotated[
        bool,
        typer.Option("--now", help="Of a server: have the announced key from now on."),
    ] = False,
    home: HomeOption = Path(),
) -> None:
    """Change a member's own key, or a server's; no run in progress is lost.

    In a server's folder it is done in two steps: first the next key is announced to all
    who are connected or connect; with --now the server has it, and who never heard of
    it needs a new `server_key` in his site file.
    """
    with exit_codes():
        if ServerFolder(home).settings_file.exists():
            _rotate_server(home, now=now)
            return
        path = rotate_key(home)
        say(Console(), f"{path} holds a new key; the old one opens the door for a day")


def _rotate_server(home: Path, *, now: bool) -> None:
    console = Console()
    with account_of(home).control() as control:
        if now:
            control.ask(ChangeKey(), Done)
            say(
                console,
                "the server has the announced key; earlier invitations are void",
            )
            return
        found = control.ask(AnnounceKey(), NextKey)
        say(console, f"the server's next key: {found.key}")
        untold = ", ".join(found.untold) or "nobody"
        say(console, f"not told yet: {untold}; ask again, then rotate with --now")


def _checked(name: str, role: str, valid_s: float) -> Invite:
    """Return the request.

    Raises:
        ConfigurationError: If a word in it is none.
    """
    tree = {"type": "Invite", "name": name, "role": role, "valid_s": valid_s}
    try:
        return msgspec.convert(tree, Invite)
    except msgspec.ValidationError as exc:
        roles = ", ".join(ROLES)
        msg = f"invite {name}: {exc}; roles are {roles}, names as in the site file"
        raise ConfigurationError(msg) from exc


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if found is None or int(found[1]) == 0:
        msg = f"--valid {text}: expected a number with s, m, h or d, such as 7d"
        raise ConfigurationError(msg)
    return int(found[1]) * _SECONDS[found[2]]
