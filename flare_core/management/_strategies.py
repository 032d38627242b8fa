"""``flare strategies``: what a plan may name under ``[strategy]``."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import final

import msgspec
from rich.console import Console

from flare_core.federation import GROUP, Strategy, strategy_class
from flare_core.management._described import Row, settings
from flare_core.management._messages import exit_codes, say


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A strategy that is installed.

    Attributes:
        name: As a plan has it.
        summary: The first sentences of its docstring.
        details: What follows there before its settings, in reStructuredText.
        settings: What it can be told.
        num_moments: How many float32 models more it keeps on the server's disk, if its
            settings all have defaults.
    """

    name: str
    summary: str
    details: str
    settings: tuple[Row, ...]
    num_moments: int | None


def installed() -> Iterator[Described]:
    """Yield the strategies of all packages, by name.

    Raises:
        ConfigurationError: If what a package offers is no strategy.
        LookupError: If a setting has no word in the docstring.
    """
    for name in sorted(entry_points(group=GROUP).names):
        kind = strategy_class(name)
        words, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        summary, _, details = words.partition("\n\n")
        yield Described(
            name=name,
            summary=" ".join(summary.split()),
            details=details.strip(),
            settings=tuple(settings(kind)),
            num_moments=_moments(kind),
        )


def strategies() -> None:
    """Show the strategies that a plan may name, with the settings of each."""
    console = Console()
    with exit_codes():
        for one in installed():
            say(console, one.name, style="bold")
            say(console, f"  {one.summary}")
            for row in one.settings:
                say(console, f"  {row.key} ({row.type}; {row.default}): {row.meaning}")
            say(console, "")


def _moments(kind: type[Strategy]) -> int | None:
    required = any(field.required for field in msgspec.structs.fields(kind))
    return None if required else len(msgspec.convert({}, kind).moments)
