"""Who this process is in the federation: the site file."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

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

Globs: TypeAlias = tuple[str, ...]
Fingerprint: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Text: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*\Z")]
_Variable: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")
]
_Gpu: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._/-]{0,127}\Z")
]

_HELP = (
    "run the script with `flare simulate SCRIPT.py --sites 4`, or set "
    f"{SITE_VARIABLE} to the site file of a deployment, or to `off` to train without "
    "a federation"
)


class _Settings(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """A table of the site file; a key nobody knows is an error."""


class Policy(_Settings, frozen=True):
    """What a site allows, whatever a plan says; what is not set allows everything.

    In a list of globs the last one that fits decides, and ``"!glob"`` takes out again.

    Attributes:
        runs: Globs of the names of the runs it takes part in.
        tensors: Globs of the names of the tensors that may leave.
        smallest_cohort: Least number of updates that a round may be made of.
        privacy: What must hide its update; no plan promises any yet, so that all but
            ``"none"`` refuses every plan.
        most_rounds: Most rounds that a run may have.
        most_bytes: Most bytes that may leave in one run, in all rounds together.
        plans: Fingerprints of the plans it accepts; all, if there are none.
    """

    runs: Globs = ("*",)
    tensors: Globs = ("*",)
    smallest_cohort: _Count = 1
    privacy: Literal["none", "differential", "secure_aggregation"] = "none"
    most_rounds: _Count | None = None
    most_bytes: _Count | None = None
    plans: tuple[Fingerprint, ...] = ()


class Resources(_Settings, frozen=True):
    """What ``flare site agent`` may give to the commands it starts.

    Attributes:
        gpus: Ids of the devices, as ``CUDA_VISIBLE_DEVICES`` takes them.  If there are
            any, a command sees those that were given to it and no other.
        concurrent_runs: Most commands at a time.
    """

    gpus: tuple[_Gpu, ...] = ()
    concurrent_runs: _Count = 1

    def __post_init__(self) -> None:
        if len(set(self.gpus)) < len(self.gpus):
            msg = f"gpus: expected each id once, got {', '.join(self.gpus)}"
            raise ValueError(msg)


class Binding(_Settings, frozen=True):
    """What ``flare site agent`` starts for a run; nothing in it comes from the server.

    Attributes:
        command: The words of a command; a first one that ends in ``.py`` is run with
            the agent's own Python.
        gpus: How many devices it needs.
        folder: Where it is started, relative to the site file; by default its folder.
        environment: Variables that it gets beside those of the agent.
        restarts: How often it is started again after it failed, as long as the run
            awaits the site.
    """

    command: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1)]
    gpus: _Natural = 0
    folder: _Text = ""
    environment: dict[_Variable, _Text] = {}
    restarts: _Natural = 0


class _SiteKeys(_Settings, frozen=True):
    """What may stand in a site file."""

    name: SiteName
    server: str = ""
    index: Annotated[int, msgspec.Meta(ge=0)] = 0
    count: _Count = 1
    folder: str = ""
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    link: str = "zmq"
    spool: str = ""
    server_key: str = ""
    next_server_key: str = ""
    key: str = ""
    group_key: str = ""
    run: str = ""
    policy: Policy = Policy()
    resources: Resources = Resources()
    runs: dict[str, Binding] = {}

    def __post_init__(self) -> None:
        most = len(self.resources.gpus)
        for glob, binding in self.runs.items():
            if binding.gpus > most:
                msg = (
                    f'runs."{glob}".gpus: expected at most {most}, as many as '
                    f"resources.gpus has, got {binding.gpus}"
                )
                raise ValueError(msg)


class Site(_SiteKeys, frozen=True):
    """A site's own settings: the script holds no address and no name.

    Attributes:
        name: Name of the site, unique in the federation.
        server: The server's address, e.g. ``"tcp://10.0.0.1:5555"``; empty if there
            is no federation.
        index: Its place among the sites of a simulation, from 0.
        count: How many sites the simulation has.
        folder: Where it keeps its record; by default that of the site file.
        patience_s: Seconds to wait for a server that has gone; for one that was never
            heard, a minute at most.
        link: How the server is spoken to: a name in ``flare_core.links``.
        spool: The server's spool, if the site runs on the server's machine and may
            share it: models are then files there, and do not travel.
        server_key: The server's public key (Z85); set by ``flare accept``.
        next_server_key: The one that the server said it would have soon; written here
            by whatever speaks to it.
        key: File with the site's own secret key, relative to the site file.
        group_key: File with the key that the sites share and the server has not,
            relative to the site file; for runs in which the server cannot read.
        run: The run to take part in; if empty, the one that awaits this site.  The
            environment variable ``FLARE_RUN`` goes before it.
        policy: What the site allows.
        resources: What ``flare site agent`` may use.
        runs: What it starts for a run, by a glob of the run's name.
        file: Where all this was read; no key of the file itself.
    """

    file: str = ""

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
        found = _decoded(path.read_bytes())
    except OSError as exc:
        msg = f"site file {path}: {exc.strerror}; {_HELP}"
        raise ConfigurationError(msg) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"site file {path}: {exc}"
        raise ConfigurationError(msg) from exc
    settings: dict[str, Any] = msgspec.structs.asdict(found) | {
        "folder": str(path.parent / found.folder),
        "spool": str(path.parent / found.spool) if found.spool else "",
        "key": str(path.parent / found.key) if found.key else "",
        "group_key": str(path.parent / found.group_key) if found.group_key else "",
        "run": os.environ.get(RUN_VARIABLE) or found.run,
    }
    return Site(**settings, file=str(path))


class _Runs(msgspec.Struct):
    """A site file of which nothing was looked at but where the bindings are."""

    runs: dict[str, Any] = {}


def _decoded(content: bytes) -> _SiteKeys:
    """Return what stands in a site file; raises msgspec's errors."""
    tree = msgspec.toml.decode(content)
    for glob, table in msgspec.convert(tree, _Runs).runs.items():
        try:  # one by one, as msgspec does not say which of them is wrong
            msgspec.convert(table, Binding)
        except msgspec.ValidationError as exc:
            msg = f'runs."{glob}": {exc}'
            raise msgspec.ValidationError(msg) from exc
    return msgspec.convert(tree, _SiteKeys)
