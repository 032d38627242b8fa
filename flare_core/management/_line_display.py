"""One line per event, for logs, pipes and CI."""

from collections.abc import Iterator, Sequence
from typing import final

from rich.console import Console

from flare_core.application import (
    BestFound,
    EndsEarly,
    Event,
    Observer,
    RoundPlayed,
    RoundRecord,
    RunOpened,
    RunPaused,
    RunResumed,
    RunTakenUp,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    Updated,
)
from flare_core.management._messages import say
from flare_core.management._wording import (
    bytes_text,
    cohort_text,
    counted,
    lora_text,
    scores_text,
)


@final
class LineDisplay:
    """Prints what happens.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def watch(self, sites: Sequence[str], rounds: int) -> Observer:
        """Return the observer of one federation."""

        def observe(event: Event) -> None:
            for line in lines(event, len(sites), rounds):
                say(self._console, line)

        return observe


def lines(event: Event, num_sites: int, rounds: int) -> Iterator[str]:
    """Yield what there is to say of an event.

    Args:
        event: What happened.
        num_sites: How many sites the run has.
        rounds: How many rounds.
    """
    match event:
        case RunOpened():
            yield f"server listens at {event.endpoint} for {counted(num_sites, 'site')}"
        case SiteJoined():
            size = bytes_text(event.layout.num_bytes)
            tensors = counted(len(event.layout.tensors), "tensor")
            yield f"{event.site} joined: {tensors}, {size} a round"
        case Updated():
            yield _update(event)
        case RoundPlayed() if num_sites > 1:
            yield from _round(event.record, num_sites, rounds)
        case BestFound() | EndsEarly():
            yield _course(event)
        case SiteRefused():
            yield f"refused: {event.refusal}"
        case RunPaused():
            yield f"paused: {event.reason}"
        case RunResumed() | RunTakenUp():
            yield f"goes on in round {event.round_number}"
        case SiteLeft():
            yield f"{event.site} left" + (f": {event.reason}" if event.reason else "")
        case _:
            return


def _update(event: Updated) -> str:
    report = event.report
    parts = [
        scores_text(report),
        counted(report.num_examples, "example"),
        f"{bytes_text(report.bytes_up)} up",
        f"{report.seconds:.1f} s",
        f"{counted(report.staleness, 'model')} behind" if report.staleness else "",
    ]
    return f"{event.site} round {event.round_number}: {_joined(parts)}"


def _round(record: RoundRecord, num_sites: int, rounds: int) -> Iterator[str]:
    parts = [
        cohort_text(record, num_sites),
        scores_text(record),
        counted(record.num_examples, "example"),
        f"{bytes_text(record.bytes_down)} down",
        f"{bytes_text(record.bytes_up)} up",
        f"{record.seconds:.1f} s",
        f"blake3 {record.blake3[:12]}",
    ]
    yield f"round {record.round} played ({record.round + 1}/{rounds}): {_joined(parts)}"
    if record.lora is not None:
        yield lora_text(record.lora)


def _course(event: BestFound | EndsEarly) -> str:
    if isinstance(event, EndsEarly):
        return f"ends after {counted(event.rounds, 'round')}: {event.reason}"
    best = event.best
    return f"best model so far: number {best.number}, {best.metric} {best.value:.4g}"


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(part for part in parts if part)
