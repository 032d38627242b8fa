"""Shows federations while they run: live in a terminal, line by line elsewhere."""

from abc import abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

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

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def display_on(console: Console) -> Display:
    """Return the display that fits: is there a terminal to draw on?"""
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)
