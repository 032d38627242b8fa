"""A real server in a thread, for tests that need a federation around them."""

import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar, final

from flare_core import Plan, Server, Site
from flare_core.application import Event, Observer, Result

_E = TypeVar("_E", bound=Event)
PATIENCE_S = 30.0
"""Longer than any test waits for an answer."""


@final
class RunningServer:
    """Plays a plan on loopback until all sites have left.

    Attributes:
        server: The server itself; `lose` and `stop` may be called.
        endpoint: Where sites connect to.
        events: What has happened so far, in order.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        observer: Observer,
        preflight: bool,
        folder: Path | None,
        patience_s: float,
        num_threads: int | None,
        share_spool: bool,
        above: Site | None,
    ) -> None:
        self.events: list[Event] = []
        self._news = threading.Condition()
        self._observer = observer
        self.server = Server(
            plan,
            folder=folder,
            observer=self._note,
            preflight=preflight,
            patience_s=patience_s,
            num_threads=num_threads,
            share_spool=share_spool,
            above=above,
        )
        self.endpoint: str = self.server.endpoint
        self._ended: Future[Result] = Future()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def result(self, *, timeout_s: float = PATIENCE_S) -> Result:
        """Wait for the end of the run and return how it went."""
        return self._ended.result(timeout_s)

    def told(self, kind: type[_E]) -> list[_E]:
        """Wait for the end of the run and return its events of a kind.

        Sites have the last model before the server says so.
        """
        self.result()
        return [one for one in self.events if isinstance(one, kind)]

    def close(self) -> None:
        """Stop the run if it still goes on, and raise what the server raised."""
        with suppress(OSError):  # it may end by itself meanwhile
            self.server.stop("the test is over")
        self._ended.result(PATIENCE_S)
        self._thread.join(PATIENCE_S)

    def until(self, words: str) -> None:
        """Wait for an event that has some words in it, unless it was there."""

        def said() -> bool:
            return any(words in str(event) for event in self.events)

        with self._news:
            assert self._news.wait_for(said, PATIENCE_S), self.events

    def _note(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()
        self._observer(event)

    def _play(self) -> None:
        try:
            self._ended.set_result(self.server.run())
        except BaseException as exc:  # noqa: BLE001 - the test's thread raises it
            self._ended.set_exception(exc)


class RunServer(Protocol):
    """Starts a server; it is closed when the test ends."""

    def __call__(
        self,
        plan: Plan,
        *,
        observer: Observer = ...,
        preflight: bool = False,
        folder: Path | None = None,
        patience_s: float = PATIENCE_S,
        num_threads: int | None = None,
        share_spool: bool = False,
        above: Site | None = None,
    ) -> RunningServer: ...


class SiteFile(Protocol):
    """Writes a site file into the test's folder, where the site's record goes too."""

    def __call__(
        self,
        name: str,
        endpoint: str,
        index: int = 0,
        count: int = 1,
        *,
        patience_s: float = PATIENCE_S,
        spool: Path | None = None,
    ) -> Path: ...
