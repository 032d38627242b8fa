"""One federation on this machine: the server in a thread, each site a process."""

import logging
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from flare_core._errors import RunAbortedError
from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application import (
    Event,
    Observer,
    Result,
    Server,
    SiteJoined,
    SiteRefused,
)
from flare_core.communication import GroupKey
from flare_core.management._failure import SiteFailedError, last_words
from flare_core.management._forks import Forks
from flare_core.management._processes import (
    Command,
    Script,
    SiteProcess,
    Started,
    end,
    environment_of,
    in_words,
    log_of,
    simulated,
    spawned,
)

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 10.0
_GROUP_KEY = "group.key"
"""How long a site that failed may take to end; its traceback comes last."""
_NEVER_JOINED = (
    "its script ended without joining: does it train with Lightning, the Hugging Face "
    "Trainer or a MONAI Bundle, or use FLCallback, FLHandler or flare_core.join, and "
    "does it get there?"
)


@final
@dataclass(frozen=True, slots=True)
class _SiteEnded:
    site: str
    code: int


@final
@dataclass(frozen=True, slots=True)
class _ServerEnded:
    outcome: Result | BaseException


@final
@dataclass(frozen=True, slots=True)
class _Interrupted:
    """Somebody wants it to end."""


@final
@dataclass(frozen=True, slots=True)
class _MayFork:
    """What the script imports is there, or `obstacle` says why it cannot be shared."""

    obstacle: str


_News: TypeAlias = _SiteEnded | _ServerEnded | _Interrupted | _MayFork


@final
class Simulation:
    """A server, its sites, and what becomes of them.

    Everything that happens arrives in one inbox, which `run` reads: the end of the
    server's thread, the end of a process, an interrupt.

    Args:
        script: What every site runs.
        plan: What the server plays.
        sites: Who takes part; their server is filled in.
        folder: Gets the site files and the logs; must exist.
        num_threads: Threads for each site.
        observers: Told of the server's events, in this order.
        preflight: Whether to compare the sites only.

    Attributes:
        tolerated: Sites that failed in a run which went on without them.
        seconds: Wall time, once it is over.
    """

    def __init__(
        self,
        script: Script,
        plan: Plan,
        sites: Sequence[Site],
        folder: Path,
        *,
        num_threads: int,
        observers: Sequence[Observer] = (),
        preflight: bool = False,
    ) -> None:
        self._script = script
        self._plan = plan
        self._sites = sites
        self._folder = folder
        self._num_threads = num_threads
        self._observers = observers
        self._preflight = preflight
        self._inbox: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._processes: dict[str, SiteProcess] = {}
        self._codes: dict[str, int] = {}
        self._forks: Forks | None = None
        self._joined: set[str] = set()
        self._refused: set[str] = set()
        self.tolerated: list[SiteFailedError] = []
        self.seconds = 0.0

    def run(self) -> Result:
        """Play the run; when it returns or raises, no process is left.

        Raises:
            SiteFailedError: If a site's script failed, or was refused.
            RunAbortedError: If the run ended early for another reason.
            KeyboardInterrupt: After `interrupt`.
        """
        # A socket in a folder of our own: no other user of this machine gets at it.
        with tempfile.TemporaryDirectory(prefix="flare-") as sockets:
            return self._run(f"ipc://{sockets}/server")

    def _run(self, address: str) -> Result:
        began = time.monotonic()
        server = Server(
            self._plan,
            address=address,
            folder=self._folder,
            observer=self._observe,
            preflight=self._preflight,
            share_spool=True,
        )
        thread = threading.Thread(
            target=self._serve, args=[server], name="flare-server"
        )
        thread.start()
        try:
            self._prepare()
            return self._follow(server)
        finally:
            server.stop("the simulation was stopped")
            end(self._processes.values())
            if self._forks is not None:
                self._forks.close()
            thread.join()
            self.seconds = time.monotonic() - began

    def interrupt(self) -> None:
        """End it; from any thread."""
        self._inbox.put(_Interrupted())

    def _serve(self, server: Server) -> None:
        try:
            outcome: Result | BaseException = server.run()
        except BaseException as exc:  # noqa: BLE001 - raised again by `run`
            outcome = exc
        self._inbox.put(_ServerEnded(outcome))

    def _observe(self, event: Event) -> None:
        if isinstance(event, SiteJoined):
            self._joined.add(event.site)
        elif isinstance(event, SiteRefused):
            self._refused.add(event.refusal.site)
        for observer in self._observers:
            observer(event)

    def _prepare(self) -> None:
        """Import once what all sites will, where they can share that."""
        if sys.platform != "linux" or len(self._sites) == 1:
            self._inbox.put(_MayFork("there is nobody to share with"))
            return
        self._forks = Forks(
            self._script.path,
            environment_of("", self._num_threads),
            self._folder / "imports.log",
            lambda obstacle: self._inbox.put(_MayFork(obstacle)),
        )

    def _start_sites(self, server: Server, start: Callable[[Command], Started]) -> None:
        where = {"server": server.endpoint, "spool": str(server.spool.absolute())}
        if self._plan.sealed:
            where["group_key"] = _GROUP_KEY
            (self._folder / _GROUP_KEY).write_text(GroupKey.new().text())
        for site in self._sites:
            command = simulated(
                self._script,
                msgspec.structs.replace(site, **where),
                self._folder,
                num_threads=self._num_threads,
            )
            self._processes[site.name] = SiteProcess(
                command, partial(self._note_end, site.name), start
            )

    def _note_end(self, site: str, code: int) -> None:
        self._inbox.put(_SiteEnded(site, code))

    def _follow(self, server: Server) -> Result:
        result = self._result(server)
        if result.error:
            deadline = time.monotonic() + _LAST_WORDS_S
            self._wait(lambda: result.failed_site in self._codes, deadline)
            raise self._cause(result)
        self._wait(lambda: len(self._codes) == len(self._sites))
        self._look_back()
        return result

    def _result(self, server: Server) -> Result:
        """Return how the server's run ended; tells it of processes that end."""
        while True:
            news = self._next()
            if isinstance(news, _SiteEnded):
                server.lose(news.site, self._why_gone(news))
            elif isinstance(news, _MayFork):
                self._start_sites(server, self._way_to_start(news.obstacle))
            elif isinstance(news.outcome, BaseException):
                raise news.outcome
            else:
                return news.outcome

    def _way_to_start(self, obstacle: str) -> Callable[[Command], Started]:
        if self._forks is None or obstacle:
            _log.info("each site imports for itself: %s", obstacle)
            return spawned
        return self._forks.start

    def _wait(self, done: Callable[[], bool], deadline: float | None = None) -> None:
        while not done():
            try:
                self._next(None if deadline is None else _until(deadline))
            except queue.Empty:
                return

    def _next(
        self, timeout_s: float | None = None
    ) -> _SiteEnded | _ServerEnded | _MayFork:
        news = self._inbox.get(timeout=timeout_s)
        if isinstance(news, _Interrupted):
            raise KeyboardInterrupt
        if isinstance(news, _SiteEnded):
            self._codes[news.site] = news.code
        return news

    def _why_gone(self, news: _SiteEnded) -> str:
        if news.code == 0 and news.site not in self._joined:
            return _NEVER_JOINED
        return f"its process {in_words(news.code)}"

    def _cause(self, result: Result) -> RunAbortedError | SiteFailedError:
        if result.failed_site not in self._processes:
            return RunAbortedError(result.error)
        return self._failure(result.failed_site, result.error)

    def _look_back(self) -> None:
        """Look at the scripts that failed though the run did not."""
        failures = [
            self._failure(site, f"site {site!r}: its process {in_words(code)}")
            for site, code in sorted(self._codes.items())
            if code != 0
        ]
        selection = self._plan.selection
        if len(failures) > selection.largest - selection.least:
            raise failures[0]
        self.tolerated = failures

    def _failure(self, site: str, reason: str) -> SiteFailedError:
        log = log_of(self._folder, site)
        said_it_all = site in self._refused or self._codes.get(site) == 0
        words = "" if said_it_all else last_words(log)
        return SiteFailedError(site, reason, last_words=words, log=log)


def _until(deadline: float) -> float:
    """Return the seconds left; none if it has passed."""
    return max(0.0, deadline - time.monotonic())
