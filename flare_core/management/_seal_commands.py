"""``flare group-key`` and ``flare unseal``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flare_core._errors import ConfigurationError, ProtocolError
from flare_core._site import site as read_site
from flare_core.application import TENSOR
from flare_core.communication import GroupKey, contents, mapped, unpack
from flare_core.management._account import site_file_of
from flare_core.management._deployment import write_secret
from flare_core.management._messages import exit_codes, say


def group_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
) -> None:
    """Make a key for sites whose server is not to read what they exchange.

    Each site of the group gets a copy, on a way that the server has no part in, and
    names it in its site file: `group_key = "FILE"`.
    """
    with exit_codes():
        try:
            write_secret(file, GroupKey.new().text().encode().rstrip())
        except OSError as exc:
            msg = f"cannot write the group key {file}: {exc.strerror}"
            raise ConfigurationError(msg) from exc
        say(Console(), f"made a group key in {file}; no server is to have it")


def unseal(
    sealed: Annotated[
        Path, typer.Argument(metavar="FILE", help="A global model of a sealed run.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    *,
    home: Annotated[
        Path,
        typer.Option(
            envvar="FLARE_HOME",
            help="The folder of a site of the group, or its site file.  Default: the "
            "current folder.",
        ),
    ] = Path(),
) -> None:
    """Open a global model that only the sites of a group can read."""
    with exit_codes():
        site = read_site(site_file_of(home))
        if not site.group_key:
            msg = f"site file {site.file}: expected `group_key`, found none"
            raise ConfigurationError(msg)
        key = GroupKey.read(Path(site.group_key))
        try:
            row = unpack(mapped(sealed))[TENSOR]
            opened = key.open(row, contents(row), b"")
            out.write_bytes(opened)
        except OSError as exc:
            msg = f"{exc.filename}: {exc.strerror}"
            raise ConfigurationError(msg) from exc
        except (KeyError, ProtocolError) as exc:
            msg = f"{sealed}: expected a sealed global model, got something else: {exc}"
            raise ConfigurationError(msg) from exc
        found = contents(row)
        say(
            Console(),
            f"{out}: the global model of run {found.run} after {found.number} rounds",
        )
