"""Enrolment at the member's side: the key pair is made here, and never leaves."""

import time
from contextlib import suppress
from pathlib import Path

import msgspec
import tomli_w

from flare_core._errors import AccessDeniedError, ConfigurationError
from flare_core._site import site as read_site
from flare_core.application import secured_as
from flare_core.communication import (
    Control,
    Done,
    Enrol,
    Identity,
    Invitation,
    KeyPair,
    Rotate,
    Secured,
    WhoAmI,
)
from flare_core.management._account import KEY_FILE, SITE_FILE, site_file_of
from flare_core.management._deployment import write_secret

_POLICY = """
# What this site takes part in.  Uncomment what you need; what violates a rule is
# refused here, before anything leaves.
# [policy]
# runs = ["heart-*"]         # names of runs
# tensors = ["*"]            # names of what may leave; "!name" takes out again
# smallest_cohort = 3        # sites whose updates are averaged, at least
# most_rounds = 100
# most_bytes = 10_000_000_000

# What `flare site agent` may use, and what it starts, by the run's name.
# [resources]
# gpus = ["0", "1"]
# concurrent_runs = 1
# [runs."heart-*"]
# command = ["torchrun", "--nproc-per-node=2", "train.py"]
# gpus = 2
"""


def read_invitation(path: Path) -> Invitation:
    """Return what an invitation says.

    Raises:
        ConfigurationError: If the file is none.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Invitation)
    except OSError as exc:
        msg = f"invitation {path}: {exc.strerror}"
        raise ConfigurationError(msg) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"invitation {path}: expected what `flare invite` prints, got: {exc}"
        raise ConfigurationError(msg) from exc


def accept_invitation(file: Path, home: Path) -> tuple[Path, Identity]:
    """Make a key pair, enrol with it, and write the site file.

    The key is on disk before the server hears of it, so an interrupted enrolment is
    gone on with by the same command.

    Args:
        file: The invitation.
        home: Where the site file and the key go.

    Returns:
        The site file, and who its holder is.

    Raises:
        ConfigurationError: If the invitation is none, or the folder is taken.
        AccessDeniedError: If the invitation does not hold (any more).
    """
    invitation = read_invitation(file)
    path = home / SITE_FILE
    if path.exists():
        msg = f"{path}: there is a member in this folder; name another one with --home"
        raise ConfigurationError(msg)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # an enrolment that was interrupted
            write_secret(home / KEY_FILE, KeyPair.new().secret)
        keys = KeyPair.read(home / KEY_FILE)
        identity = _enrolled(invitation, keys, file)
        path.write_text(_site_file(invitation), encoding="utf-8")
    except OSError as exc:
        msg = f"cannot write to {home}: {exc.strerror}"
        raise ConfigurationError(msg) from exc
    return path, identity


def rotate_key(home: Path) -> Path:
    """Give a member another key; the site file names it once the server knows it.

    Returns:
        The key file.
    """
    site = read_site(site_file_of(home))
    secured = secured_as(site)
    if secured is None:
        msg = f"{site_file_of(home)} names no key that could be changed"
        raise ConfigurationError(msg)
    path = Path(site.key)
    fresh = path.with_suffix(".new")
    with suppress(FileExistsError):  # a change that was interrupted
        write_secret(fresh, KeyPair.new().secret)
    keys = KeyPair.read(fresh)
    with Control(site.server, name=site.name, secured=secured) as control:
        control.ask(Rotate(key=keys.public.decode()), Done)
    confirmed = Secured(keys, secured.server, secured.next_server)
    with Control(site.server, name=site.name, secured=confirmed) as control:
        control.ask(WhoAmI(), Identity)
    fresh.replace(path)
    return path


def _enrolled(invitation: Invitation, keys: KeyPair, file: Path) -> Identity:
    """Enrol, or find that this was done by an earlier try."""
    server = invitation.server_key.encode()
    mine = Secured(keys, server)
    by_token = Secured(KeyPair.from_token(invitation.token), server)
    address, name = invitation.server, invitation.name
    try:
        with Control(address, name=name, secured=by_token) as control:
            control.ask(Enrol(key=keys.public.decode()), Identity)
    except AccessDeniedError as exc:
        with (
            suppress(AccessDeniedError),
            Control(address, name=name, secured=mine) as control,
        ):
            return control.ask(WhoAmI(), Identity)
        late = " (it has expired)" if time.time() >= invitation.expires else ""
        msg = (
            f"the server at {address} does not take invitation {file}{late}: it was "
            "used, withdrawn or has expired; ask for another one"
        )
        raise ConfigurationError(msg) from exc
    with Control(address, name=name, secured=mine) as control:
        return control.ask(WhoAmI(), Identity)


def _site_file(invitation: Invitation) -> str:
    settings = {
        "name": invitation.name,
        "server": invitation.server,
        "server_key": invitation.server_key,
        "key": KEY_FILE,
    }
    policy = _POLICY if invitation.role == "site" else ""
    return tomli_w.dumps(settings) + policy
