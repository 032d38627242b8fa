"""The table of a terminal, drawn for a real federation."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from flare_core.application import Event, Published
from flare_core.management import SiteFailedError, plan_of, simulate
from flare_core.management._display import display_on
from flare_core.management._live_display import LiveDisplay
from simulated import LEARNS, WriteScript

FAILS = LEARNS.replace("step =", "step = 1 / me.index #")
PLAN = plan_of(None, sites=2, rounds=3)


def _last_drawn(screen: io.StringIO) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return plain[plain.rindex("site  ") :].splitlines()


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def test_shows_a_row_per_site_and_the_rounds(
    script: WriteScript, tmp_path: Path, screen: io.StringIO
) -> None:
    terminal = Console(file=screen, force_terminal=True, width=100)

    with display_on(terminal) as display:
        watch = display.watch(["site-1", "site-2"], PLAN.rounds)
        simulate(script(LEARNS), plan=PLAN, run_dir=tmp_path / "r", observer=watch)

    header, first, second, rounds = _last_drawn(screen)
    assert header.split()[:4] == ["site", "state", "round", "metrics"]
    assert first.split()[:6] == ["site-1", "done", "2", "loss", "0.5", "10"]
    assert second.split()[:6] == ["site-2", "done", "2", "loss", "0.5", "20"]
    assert "3/3" in rounds


def test_shows_which_site_failed_and_which_were_stopped(
    script: WriteScript, tmp_path: Path, screen: io.StringIO
) -> None:
    terminal = Console(file=screen, force_terminal=True, width=100)

    with display_on(terminal) as display:
        watch = display.watch(["site-1", "site-2"], PLAN.rounds)
        with pytest.raises(SiteFailedError, match="ZeroDivisionError"):
            simulate(script(FAILS), plan=PLAN, run_dir=tmp_path / "r", observer=watch)

    _, first, second, _ = _last_drawn(screen)
    assert first.split()[:2] == ["site-1", "failed"]
    assert second.split()[:2] == ["site-2", "stopped"]


def test_a_site_that_is_not_in_the_cohort_waits(
    script: WriteScript, tmp_path: Path, screen: io.StringIO
) -> None:
    terminal = Console(file=screen, force_terminal=True, width=100)
    settings = ["selection.choose=round_robin", "selection.k=1"]
    plan = plan_of(None, sites=2, rounds=2, settings=settings)
    states: list[list[str]] = []

    with LiveDisplay(terminal) as display:
        watch = display.watch(["site-1", "site-2"], plan.rounds)

        def observe(event: Event) -> None:
            watch(event)
            if isinstance(event, Published):
                rows = display._rows.values()
                states.append([row.state for row in rows])

        simulate(script(LEARNS), plan=plan, run_dir=tmp_path / "r", observer=observe)

    assert states == [
        ["training", "waiting"],
        ["waiting", "training"],
        ["finishing", "finishing"],
    ]
