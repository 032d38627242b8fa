"""What a run came to, in a few lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import final

from flare_core.application import Event, LoraReport, Result, RoundPlayed
from flare_core.management._wording import (
    best_text,
    bytes_text,
    counted,
    lora_text,
    metrics_text,
)


@final
class Tally:
    """An observer that adds up the rounds of a run.

    Attributes:
        bytes_down: Bytes of global models sent to sites.
        bytes_up: Bytes of updates received.
        lora: How the LoRA weights of the last round were combined, if it has some.
    """

    def __init__(self) -> None:
        self.bytes_down = 0
        self.bytes_up = 0
        self.lora: LoraReport | None = None

    def __call__(self, event: Event) -> None:
        """Count the round that was played."""
        if isinstance(event, RoundPlayed):
            self.bytes_down += event.record.bytes_down
            self.bytes_up += event.record.bytes_up
            self.lora = event.record.lora


def summary(
    result: Result, tally: Tally, *, seconds: float, folder: Path
) -> Iterator[str]:
    """Yield the lines.

    Args:
        result: How the run ended.
        tally: What its rounds add up to.
        seconds: Its wall time.
        folder: The run folder.
    """
    yield (
        f"{counted(result.rounds, 'round')} in {seconds:.1f} s, "
        f"{bytes_text(tally.bytes_down)} down, {bytes_text(tally.bytes_up)} up"
    )
    if result.metrics:
        mean = f"  (mean over {counted(len(result.sites), 'site')})"
        yield f"final model: {metrics_text(result.metrics)}{mean}"
    if tally.lora is not None:
        yield f"last round: {lora_text(tally.lora)}"
    if result.stopped:
        yield f"ended early: {result.stopped}"
    if result.best is not None:
        yield f"best model: {best_text(result.best, result.rounds)}"
    yield f"blake3 {result.blake3}"
    yield f"run folder {folder}"
