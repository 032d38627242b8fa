"""``flare site``: the agent of a site, and what its file says."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shlex import join

import typer
from rich.console import Console

from flare_core._site import Binding, Policy, Resources, Site
from flare_core._site import site as read_site
from flare_core.management._account import HomeOption, site_file_of
from flare_core.management._agent import Agent
from flare_core.management._bound_process import folder_of
from flare_core.management._messages import exit_codes, say
from flare_core.management._signals import interrupts

site_app = typer.Typer(
    no_args_is_help=True, help="Serve a site, and see what its file says."
)

_EMPTY = {
    "gpus": "none",
    "most_bytes": "no limit",
    "most_rounds": "no limit",
    "plans": "all",
    "runs": "none",
    "tensors": "none",
}
"""What it means that a setting says nothing."""


@site_app.command("agent")
def _agent(*, home: HomeOption = Path()) -> None:
    """Start what the site file binds to the runs that await this site.

    Runs in the foreground, until Ctrl-C or SIGTERM, and ends then what it has started.
    No command and no argument comes from the server: it says the names of runs only.
    """
    console = Console()
    with exit_codes():
        agent = Agent(home, partial(_say_when, console))
        with interrupts(agent.stop):
            agent.run()
        _say_when(console, "stopped")


@site_app.command("check")
def _check(*, home: HomeOption = Path()) -> None:
    """Show what a site file allows, declares and binds, as it is understood."""
    console = Console()
    with exit_codes():
        site = read_site(site_file_of(home))
        for line in _lines(site):
            say(console, line)


def _say_when(console: Console, line: str) -> None:
    say(console, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")


def _lines(site: Site) -> Iterator[str]:
    yield f"site {site.name}, server {site.server or 'none'}"
    for table, settings in (("policy", site.policy), ("resources", site.resources)):
        yield f"[{table}]"
        yield from _settings(settings)
    for glob, binding in site.runs.items():
        yield f'[runs."{glob}"]'
        yield from _binding(site, binding)
    if not site.runs:
        yield "no command is bound to a run: `flare site agent` would start nothing"


def _settings(settings: Policy | Resources) -> Iterator[str]:
    for name in settings.__struct_fields__:
        yield f"  {name}: {_shown(getattr(settings, name)) or _EMPTY[name]}"


def _shown(value: tuple[str, ...] | str | int | None) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value)


def _binding(site: Site, binding: Binding) -> Iterator[str]:
    folder = folder_of(site, binding.folder)
    missing = "" if folder.is_dir() else "  (there is no such folder)"
    yield f"  command: {join(binding.command)}"
    yield f"  gpus: {binding.gpus}"
    yield f"  folder: {folder}{missing}"
    yield f"  environment: {', '.join(binding.environment) or 'none'}"
    yield f"  restarts: {binding.restarts}"
