"""A row per site, a bar for the rounds and the time left, redrawn in place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from flare_core.application import (
    Event,
    Observer,
    Published,
    RoundPlayed,
    RunEnded,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    SiteReport,
    Updated,
)
from flare_core.management._wording import bytes_text, scores_text

_STYLES = {
    "starting": "dim",
    "joined": "cyan",
    "training": "bold yellow",
    "waiting": "blue",
    "finishing": "cyan",
    "done": "green",
    "failed": "bold red",
    "stopped": "red",
}
_ENDED = ("done", "failed", "stopped")
_SPEED_PERIOD_S = 3600.0
"""Rounds looked back at to tell the time left; rich's own 30 s can be less than one."""


@final
@dataclass(frozen=True, slots=True)
class _Row:
    state: str = "starting"
    round_number: int | None = None
    metrics: str = ""
    num_examples: int = 0
    bytes_down: int = 0
    bytes_up: int = 0

    def with_model(self, event: Published, site: str) -> "_Row":
        if event.final:
            return replace(self, state="finishing")
        if site not in event.cohort:
            return replace(self, state="waiting")
        return replace(self, state="training", round_number=event.round_number)

    def with_report(self, report: SiteReport) -> "_Row":
        return replace(
            self,
            state="waiting",
            metrics=scores_text(report),
            num_examples=report.num_examples,
            bytes_down=self.bytes_down + report.bytes_down,
            bytes_up=self.bytes_up + report.bytes_up,
        )


@final
class LiveDisplay:
    """Draws all federations that run at the same time as one table.

    Rows are replaced, never changed, each by its own federation's thread only; so
    the thread that draws needs no lock.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._rows: dict[str, _Row] = {}
        self._num_rounds = 0
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=_SPEED_PERIOD_S,
        )
        self._task = self._progress.add_task("rounds", total=None)
        self._live = Live(
            console=console, get_renderable=self._drawn, refresh_per_second=4
        )

    def watch(self, sites: Sequence[str], rounds: int) -> Observer:
        """Return the observer of one federation."""
        self._rows |= dict.fromkeys(sites, _Row())
        self._num_rounds += rounds
        self._progress.update(self._task, total=self._num_rounds)

        def observe(event: Event) -> None:
            if isinstance(event, RoundPlayed):
                self._progress.advance(self._task)
            for site in sites:
                self._rows[site] = _after(self._rows[site], site, event)

        return observe

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _drawn(self) -> RenderableType:
        table = Table("site", "state", "round", "metrics", box=None, pad_edge=False)
        for name in ("examples", "down", "up"):
            table.add_column(name, justify="right")
        for site, row in self._rows.items():
            table.add_row(site, *_cells(row))
        return Group(table, self._progress)


def _after(row: _Row, site: str, event: Event) -> _Row:
    """Return a site's row after an event of its federation."""
    match event:
        case _ if row.state in _ENDED:
            return row
        case Published():
            return row.with_model(event, site)
        case RunEnded() if event.result.error:
            return replace(row, state="stopped")
        case SiteRefused() if event.refusal.site == site:
            return replace(row, state="failed")
        case SiteJoined() | Updated() | SiteLeft() if event.site == site:
            return _after_own(row, event)
        case _:
            return row


def _after_own(row: _Row, event: SiteJoined | Updated | SiteLeft) -> _Row:
    if isinstance(event, SiteJoined):
        return replace(row, state="joined")
    if isinstance(event, Updated):
        return row.with_report(event.report)
    good = row.state == "finishing" or not event.reason
    return replace(row, state="done" if good else "failed")


def _cells(row: _Row) -> list[RenderableType]:
    return [
        Text(row.state, style=_STYLES[row.state]),
        "" if row.round_number is None else str(row.round_number),
        Text(row.metrics),
        f"{row.num_examples:,}" if row.num_examples else "",
        bytes_text(row.bytes_down) if row.bytes_down else "",
        bytes_text(row.bytes_up) if row.bytes_up else "",
    ]
