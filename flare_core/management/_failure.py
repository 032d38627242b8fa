"""What there is to say about a site that failed: the cause once, from its own log."""

import os
from pathlib import Path
from typing import final

from flare_core._errors import FlareError

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_TAIL_LINES = 20
_MAX_LINES = 200
_MOST_BYTES = 1_000_000
"""Of a log, from its end: more than any traceback, and fits in memory."""


@final
class SiteFailedError(FlareError):
    """A site's script failed.

    Attributes:
        site: Its name.
        reason: What happened, in a sentence.
        last_words: Its traceback, or the end of its output if there is none; empty
            if the reason says it all.
        log: The file with all its output.
    """

    def __init__(self, site: str, reason: str, *, last_words: str, log: Path) -> None:
        super().__init__(site, reason, last_words, log)
        self.site = site
        self.reason = reason
        self.last_words = last_words
        self.log = log

    def __str__(self) -> str:
        said = f"\n\n{self.last_words}\n" if self.last_words else ""
        return f"{self.reason}{said}\nall output of {self.site!r}: {self.log}"


def last_words(log: Path) -> str:
    """Return the last traceback in a log, or its last lines if there is none."""
    try:
        text = _end_of(log)
    except OSError:
        return ""
    start = text.rfind(_TRACEBACK)
    if start < 0:
        return "\n".join(_lines(text)[-_TAIL_LINES:])
    while text[:start].rstrip().endswith(_CHAINED):
        start = text.rfind(_TRACEBACK, 0, start)
    return "\n".join(_lines(text[start:])[-_MAX_LINES:])


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MOST_BYTES))
        return file.read().decode(errors="replace")


def _lines(text: str) -> list[str]:
    """Return what a terminal would show: of a progress bar its last state only."""
    lines = text.rstrip().split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines]
