"""Shows federations while they run: live in a terminal, line by line elsewhere."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from flare_core.application import Observer
from flare_core.management._line_display import LineDisplay
from flare_core.management._live_display import LiveDisplay


class Display(Protocol):
    """What is shown of the federations that run at the same time."""

    @abstractmethod
    def watch(self, sites: Sequence[str], rounds: int) -> Observer:
        """Return the observer of one federation.

        Args:
            sites: All its sites.
            rounds: The rounds it is to play.
        """
        ...


@contextmanager
def display_on(console: Console) -> Generator[Display]:
    """Yield the display that fits: is there a terminal to draw on?"""
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with LiveDisplay(console) as display:
        yield display
