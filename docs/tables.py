"""Tables of the reference that are made from the code, in Markdown.

A setting without a word in its class's docstring is an error, and so is a word without
a setting: then the documentation is not built.
"""

from collections.abc import Collection, Iterator
from typing import Any

from flare_core._pairs import PLAN_PAIRS, Pair
from flare_core.federation import (
    AGGREGATIONS,
    LORA_PAIRS,
    PAIRS,
    STRATEGIES,
    Strategy,
)
from flare_core.management._deployment import MAY, ROLES
from flare_core.management._described import Row
from flare_core.management._strategies import Described, installed

_CHOICES = {choice.table: choice for choice in (STRATEGIES, AGGREGATIONS)}


def settings_table(rows: Collection[Row]) -> str:
    """Return keys as a table."""
    lines = [
        f"| `{row.key}` | {row.type} | {row.default} | {row.meaning} |" for row in rows
    ]
    head = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *lines])


def roles_table() -> str:
    """Return who may do what, as the server's desk has it."""
    lines = [
        f"| {act} | " + " | ".join("yes" if role in may else "" for role in ROLES) + "|"
        for act, may in MAY.items()
    ]
    head = [f"| | {' | '.join(ROLES)} |", "|---" * (len(ROLES) + 1) + "|"]
    return "\n".join([*head, *lines])


def pairs_table() -> str:
    """Return what in a plan does not go together, as it is looked at."""
    pairs: list[Pair[Any]] = [*PLAN_PAIRS, *PAIRS, *LORA_PAIRS]
    lines = [
        f"| {pair.one} | {pair.other} | {pair.why} | {pair.instead or 'refused'} |"
        for pair in pairs
    ]
    head = ["| | with | why not | so it is |", "|---|---|---|---|"]
    return "\n".join([*head, *lines])


def choices_page(table: str) -> str:
    """Return what there is to say of what a table of a plan may name, with settings."""
    sections: list[str] = []
    for one in installed(_CHOICES[table]):
        sections += [f"**{one.name}**", one.summary]
        if one.details:
            sections.append(f"```{{eval-rst}}\n{one.details}\n```")
        sections += _numbers(one)
        if one.settings:
            sections.append(settings_table(one.settings))
    return "\n\n".join(sections)


def _numbers(one: Described) -> Iterator[str]:
    """Yield what can be told of one whose settings all have defaults."""
    if isinstance(one.default, Strategy):
        yield _disk(len(one.default.moments))
    elif one.default is not None and one.default.least > 1:
        yield f"By default it takes at least {one.default.least} updates."


def _disk(num_moments: int) -> str:
    if not num_moments:
        return "It remembers nothing from round to round."
    return f"Float32 models more on the server's disk, and on it only: {num_moments}."
