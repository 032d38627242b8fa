"""``flare audit``: read an audit log, and find out whether it is as it was written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import typer
from rich.console import Console

from flare_core.application import Verdict, audit_lines, verify_audit
from flare_core.management._messages import complain, exit_codes, say
from flare_core.management._wording import counted

audit_app = typer.Typer(
    no_args_is_help=True,
    help="Read the audit log of a server or a site, and verify it.",
)

_CHAIN = {"hash", "prev", "signature"}
_HEADED = {"event", "run", "seq", "site", "time"}

_FolderOption: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="The folder of audit.jsonl.  Default: the current one."
    ),
]


@audit_app.command("verify")
def _verify(folder: _FolderOption = Path()) -> None:
    """Verify the chain and the signatures of an audit log; ends with 1 if one is wrong.

    A changed byte, a line taken out and two lines exchanged are found.  Compare the
    key's fingerprint with the one that you have noted elsewhere: who has the secret
    key can write a whole log anew.
    """
    console = Console()
    with exit_codes():
        verdict = verify_audit(folder)
        for remark in verdict.remarks:
            say(console, str(remark), style="yellow")
        for problem in verdict.problems:
            complain(str(problem), style="red")
        say(console, _summary(verdict), style="" if verdict.problems else "green")
        if verdict.unsigned:
            say(
                console, f"not signed yet: the last {counted(verdict.unsigned, 'line')}"
            )
        if verdict.problems:
            raise typer.Exit(1)


@audit_app.command("show")
def _show(
    folder: _FolderOption = Path(),
    *,
    run: Annotated[str, typer.Option(help="Only what belongs to this run.")] = "",
    event: Annotated[str, typer.Option(help="Only what happened so.")] = "",
) -> None:
    """Print the lines of an audit log to read; nothing is verified."""
    console = Console()
    with exit_codes():
        for number, raw in enumerate(audit_lines(folder), start=1):
            entry = _entry(raw)
            if not entry:
                complain(f"line {number} is damaged; see `flare audit verify`")
            elif run in ("", entry.get("run")) and event in ("", entry.get("event")):
                say(console, _printable("  ".join(_words(entry))))


def _summary(verdict: Verdict) -> str:
    lines = counted(verdict.lines, "line")
    signatures = counted(verdict.signatures, "signature")
    verb = "holds" if (verdict.lines, verdict.signatures) == (1, 0) else "hold"
    key = f"; key {verdict.key}" if verdict.key else "; there is no key"
    return f"{lines} and {signatures} {verb}{key}"


def _entry(raw: bytes) -> dict[str, Any]:
    """Return a line's content; empty if it is damaged."""
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _words(entry: dict[str, Any]) -> Iterator[str]:
    """Yield what a line says; facts as in JSON."""
    yield f"{entry.get('seq', '?'):>5}"
    yield str(entry.get("time", "?"))
    yield str(entry.get("event", "?"))
    for name in ("run", "site"):
        if entry.get(name):
            yield f"{name} {entry[name]}"
    for name, value in entry.items():
        if name not in _CHAIN | _HEADED:
            yield f"{name}={msgspec.json.encode(value).decode()}"


def _printable(line: str) -> str:
    """Return a line without what could move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)
