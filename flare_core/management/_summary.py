"""What a run came to, in four lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import final

from flare_core.application import Event, Result, RoundPlayed
from flare_core.management._wording import bytes_text, counted, metrics_text


@final
class Tally:
    """An observer that adds up the bytes of a run.

    Attributes:
        bytes_down: Bytes of global models sent to sites.
        bytes_up: Bytes of updates received.
    """

    def __init__(self) -> None:
        self.bytes_down = 0
        self.bytes_up = 0

    def __call__(self, event: Event) -> None:
        """Count the round that was played."""
        if isinstance(event, RoundPlayed):
            self.bytes_down += event.record.bytes_down
            self.bytes_up += event.record.bytes_up


def summary(
    result: Result, tally: Tally, *, seconds: float, folder: Path
) -> Iterator[str]:
    """Yield the lines.

    Args:
        result: How the run ended.
        tally: Its bytes.
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
    yield f"blake3 {result.blake3}"
    yield f"run folder {folder}"
