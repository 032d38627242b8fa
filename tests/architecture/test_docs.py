"""The documentation keeps up with the code."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer

import flare_core
from flare_core.communication._zmq._access import Why
from flare_core.management._deployment import ServerSettings
from flare_core.management._described import settings
from flare_core.management.cli import app
from inspection import sources

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO_PER_FRAMEWORK = [
    "federate-a-lightning-script",
    "federate-a-hugging-face-script",
    "federate-a-monai-script",
    "federate-your-own-loop",
]
FLARE = Path(sys.executable).with_name("flare")
ERRORS = re.compile(r"│ error\s+│\s+([\d.]+) │\s+([\d.]+) │\s+([\d.]+) │")
NOTES = ("note", "_note")
"""The methods that write into an audit log; the event is what they are told first."""


class Described(msgspec.Struct):
    """Some settings.

    Attributes:
        known: The only word.
    """

    known: int = 0


class Silent(Described):
    """More settings.

    Attributes:
        known: The only word.
    """

    unknown: int = 0


class Talkative(msgspec.Struct):
    """No settings.

    Attributes:
        known: A word too many.
    """


def _commands(command: Any, name: str = "flare") -> Iterator[tuple[str, Any]]:
    """Yield every command that is shown, by its name."""
    below = getattr(command, "commands", {})
    if not below:
        yield name, command
    for word, one in below.items():
        if not one.hidden:
            yield from _commands(one, f"{name} {word}")


COMMANDS = dict(_commands(typer.main.get_command(app)))


def _reference(page: str) -> str:
    """Return a page, without what its reader does not see."""
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    return re.sub(r"^%.*\n", "", text, flags=re.MULTILINE)


def _section(page: str, name: str) -> str:
    """Return what a page says of a command, or of the group that it is in."""
    parts = dict(part.split("\n", 1) for part in page.split("\n## "))
    return parts.get(name) or parts.get(name.rpartition(" ")[0], "")


def _events(source: Path, methods: tuple[str, ...] = NOTES) -> Iterator[str]:
    """Yield the events, or what else is told first, that a file writes down."""
    for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            event = call.args[0] if call.args else None
            if call.func.attr in methods and isinstance(event, ast.Constant):
                yield str(event.value)


def _headings(page: str) -> list[str]:
    text = (DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("## ")]


@pytest.mark.parametrize("name", flare_core.__all__)
def test_the_reference_knows_what_is_public(name: str) -> None:
    reference = (DOCS / "reference" / "core.md").read_text(encoding="utf-8")

    assert f":: flare_core.{name}\n" in reference


@pytest.mark.parametrize("page", HOW_TO_PER_FRAMEWORK[1:])
def test_every_framework_has_the_same_headings(page: str) -> None:
    assert _headings(page) == _headings(HOW_TO_PER_FRAMEWORK[0])


def test_the_tutorial_ends_as_it_says(tmp_path: Path) -> None:
    script = DOCS / "tutorials" / "line.py"
    promised = ERRORS.search(script.with_name("first-federation.md").read_text("utf-8"))

    command = [str(FLARE), "simulate", str(script), "--sites", "3", "--rounds", "10"]
    done = subprocess.run(
        [*command, "--baselines", "--run-dir", str(tmp_path / "run")],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert promised is not None
    assert done.returncode == 0, done.stderr
    found = ERRORS.search(done.stdout)
    assert found is not None, done.stdout
    assert found.groups() == promised.groups()


@pytest.mark.parametrize("struct", [ServerSettings, flare_core.Site])
def test_every_setting_has_a_word(struct: type[msgspec.Struct]) -> None:
    without = ["file"] if struct is flare_core.Site else []

    rows = list(settings(struct, without=without))

    assert len(rows) > 10
    assert all(row.meaning for row in rows)


def test_a_table_has_the_limits_and_defaults_of_a_setting() -> None:
    rows = {row.key: row for row in settings(ServerSettings)}

    assert rows["listen"].default == "required"
    assert rows["limits.strangers"].type == "integer ≥ 1"
    assert rows["limits.strangers"].default == "`64`"


@pytest.mark.parametrize("struct", [Silent, Talkative])
def test_a_setting_without_a_word_or_a_word_without_one_builds_nothing(
    struct: type[msgspec.Struct],
) -> None:
    with pytest.raises(LookupError, match=struct.__name__):
        list(settings(struct))


def test_the_commands_are_found() -> None:
    assert {"flare simulate", "flare run create", "flare invite"} <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_knows_every_command_and_its_options(name: str) -> None:
    page = _reference("command-line")
    said = _section(page, name)

    options = {opt for param in COMMANDS[name].params for opt in param.opts}
    unsaid = [one for one in options if one.startswith("--") and one not in said]

    assert name in said
    if name == "flare check":  # "takes the options of flare simulate"
        said_there = _section(page, "flare simulate")
        unsaid = [one for one in unsaid if one not in said_there]
    assert not unsaid


def test_the_reference_knows_every_kind_of_refusal() -> None:
    page = _reference("audit-log")
    kinds = {
        kind
        for source in sources(Path(flare_core.__file__).parent)
        for kind in _events(source, ("refused",))
    }

    assert "takes part as another" in kinds
    assert not [kind for kind in kinds | {*get_args(Why)} if f"`{kind}`" not in page]


def test_the_reference_knows_every_event_of_an_audit_log() -> None:
    page = _reference("audit-log")
    events = {
        event
        for source in sources(Path(flare_core.__file__).parent)
        for event in _events(source)
    }

    assert {"enrolled", "revoked", "round", "update"} <= events
    assert not [event for event in events if f"| `{event}` |" not in page]
