"""What the commands say, and the exit code that goes with it."""

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console

from flare_core._errors import FlareError
from flare_core.management._failure import SiteFailedError

_INTERRUPTED = 130


@contextmanager
def exit_codes(*, interrupted: str = "interrupted") -> Generator[None]:
    """Show our errors as one message and end with the code of their kind.

    Args:
        interrupted: What to say after Ctrl-C.
    """
    try:
        yield
    except SiteFailedError as exc:
        show_failure(exc, style="bold red")
        raise typer.Exit(1) from exc
    except FlareError as exc:
        complain(str(exc), style="bold red")
        raise typer.Exit(1) from exc
    except KeyboardInterrupt as exc:
        complain(interrupted, style="yellow")
        raise typer.Exit(_INTERRUPTED) from exc


def show_failure(failure: SiteFailedError, *, style: str) -> None:
    """Say on stderr what happened at a site, with its traceback."""
    complain(failure.reason, style=style)
    if failure.last_words:
        complain(f"\n{failure.site} said last:", style="bold")
        complain(f"{failure.last_words}\n")
    complain(f"all its output: {failure.log}", style="dim")


def complain(line: str, *, style: str = "") -> None:
    """Print a line on stderr."""
    say(Console(stderr=True), line, style=style)


def say(console: Console, line: str, *, style: str = "") -> None:
    """Print a line as it is: brackets mean nothing, and nothing is wrapped.

    Much of it was said by other parties, who must not steer this terminal: what cannot
    be printed is shown as a question mark.
    """
    text = "".join(one if one.isprintable() or one == "\n" else "?" for one in line)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
