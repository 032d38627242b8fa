"""The command that a site's own file binds to a run, as a process."""

import secrets
from collections.abc import Callable
from pathlib import Path
from shlex import join

from flare_core._errors import ConfigurationError
from flare_core._site import Site
from flare_core.management._processes import Command, SiteProcess
from flare_core.management._run_commands import command_line, site_environment
from flare_core.management._scheduler import Start

_GPUS = "CUDA_VISIBLE_DEVICES"
_MARK = "FLARE_PROCESS"
"""Environment variable that all processes of one start have, and no others."""


def start_bound(site: Site, start: Start, on_end: Callable[[int], None]) -> SiteProcess:
    """Start the command of a run.

    Of what the server says only the run's name gets there, as ``FLARE_RUN`` and in the
    name of the log.

    Raises:
        ConfigurationError: If it cannot be started.
    """
    command = _command(site, start)
    try:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        return SiteProcess(command, on_end)
    except OSError as exc:
        msg = (
            f"cannot start {join(command.words)} in {command.folder} "
            f'({exc}); see runs."{start.glob}" in {site.file}'
        )
        raise ConfigurationError(msg) from exc


def log_of_run(site: Site, run: str) -> Path:
    """Return the file that a run's command writes to."""
    return Path(site.folder, "runs", f"{run}.log")


def folder_of(site: Site, start_in: str) -> Path:
    """Return the folder that a binding names."""
    return Path(site.file).absolute().parent / start_in


def _command(site: Site, start: Start) -> Command:
    mark = secrets.token_hex(16)
    environment = site_environment(
        Path(site.file),
        start.run,
        more={"PYTHONUNBUFFERED": "1", **start.binding.environment},
    )
    if site.resources.gpus:  # what is not declared is not ours to hide
        environment[_GPUS] = ",".join(start.gpus)
    return Command(
        words=command_line(start.binding.command),
        environment=environment | {_MARK: mark},
        mark=f"{_MARK}={mark}",
        log=log_of_run(site, start.run),
        folder=folder_of(site, start.binding.folder),
    )
