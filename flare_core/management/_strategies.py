"""``flare strategies``: what a plan may name under two of its tables."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import final

import msgspec
from rich.console import Console

from flare_core.federation import (
    AGGREGATIONS,
    STRATEGIES,
    Aggregation,
    Choice,
    Strategy,
)
from flare_core.management._described import Row, settings
from flare_core.management._messages import exit_codes, say


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A strategy or an aggregation that is installed.

    Attributes:
        name: As a plan has it.
        summary: The first sentences of its docstring.
        details: What follows there before its settings, in reStructuredText.
        settings: What it can be told.
        default: It, if its settings all have defaults.
    """

    name: str
    summary: str
    details: str
    settings: tuple[Row, ...]
    default: Strategy | Aggregation | None


def installed(choice: Choice[Strategy] | Choice[Aggregation]) -> Iterator[Described]:
    """Yield those of all packages, by name.

    Args:
        choice: Of which table of the plan.

    Raises:
        ConfigurationError: If what a package offers is none.
        LookupError: If a setting has no word in the docstring.
    """
    for name in sorted(entry_points(group=choice.group).names):
        kind = choice.named(name)
        words, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        summary, _, details = words.partition("\n\n")
        yield Described(
            name=name,
            summary=" ".join(summary.split()),
            details=details.strip(),
            settings=tuple(settings(kind)),
            default=_default(kind),
        )


def strategies() -> None:
    """Show the strategies and aggregations that a plan may name, with settings."""
    console = Console()
    with exit_codes():
        for choice in (STRATEGIES, AGGREGATIONS):
            say(console, f"[{choice.table}]", style="bold underline")
            say(console, "")
            for one in installed(choice):
                _show(console, one)


def _show(console: Console, one: Described) -> None:
    say(console, one.name, style="bold")
    say(console, f"  {one.summary}")
    for row in one.settings:
        say(console, f"  {row.key} ({row.type}; {row.default}): {row.meaning}")
    say(console, "")


def _default(
    kind: type[Strategy] | type[Aggregation],
) -> Strategy | Aggregation | None:
    required = any(field.required for field in msgspec.structs.fields(kind))
    return None if required else msgspec.convert({}, kind)
