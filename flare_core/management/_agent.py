"""A site's agent: starts what the site itself binds to the runs that await it.

The server says names of runs, and nothing else that counts here.
"""

import fcntl
import queue
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from flare_core._errors import AccessDeniedError, ConfigurationError
from flare_core._site import SiteName
from flare_core._site import site as read_site
from flare_core.application import AuditLog
from flare_core.communication import AwaitRuns, Control
from flare_core.management._account import account_of, site_file_of
from flare_core.management._bound_process import log_of_run, start_bound
from flare_core.management._processes import SiteProcess, end, in_words
from flare_core.management._scheduler import Hold, Start, Tried, schedule

_LOOK_S = 2.0
"""How often the site file is looked at while a run awaits the site."""
_ASK_AGAIN_S = 60.0
"""A server that says nothing for so long may have missed what it was asked."""
_GRACE_S = 5.0
"""How long a command may take to end politely."""
_SERVER, _FILE = "the server", "the site file"  # no run is called so


@final
@dataclass(frozen=True, slots=True)
class _Job:
    """A command that runs."""

    start: Start
    process: SiteProcess
    since: float


@final
class Agent:
    """Starts commands for the runs that await a site, and ends them when it ends.

    All happens on the thread of `run`; other threads only wake it.

    Args:
        home: The site's folder, or its site file.
        say: Told, in a line, of each thing that happens.

    Raises:
        ConfigurationError: If there is no site file with keys, or it is wrong.
    """

    def __init__(self, home: Path, say: Callable[[str], None]) -> None:
        self._home = home
        self._file = site_file_of(home)
        self._account = account_of(home)
        self._site = read_site(self._file)
        self._audit = AuditLog(Path(self._site.folder))
        self._say = say
        self._awaiting: Sequence[str] = ()
        self._jobs: dict[str, _Job] = {}
        self._tried: dict[str, Tried] = {}
        self._said: dict[str, str] = {}
        self._ends: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._control: Control | None = None
        self._heard = 0.0
        self._stopped = False

    def run(self) -> None:
        """Serve the site until `stop`; then no process is left.

        Raises:
            AccessDeniedError: If the site's key was revoked.
            RequestDeniedError: If this is no site.
            ConfigurationError: If another agent serves the site already.
        """
        with _alone(Path(self._site.folder)):
            try:
                while not self._stopped:
                    self._serve()
            finally:
                self._end_all()

    def stop(self) -> None:
        """End it; from any thread, and from a signal handler."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        if self._control is not None:
            self._control.wake()

    def _serve(self) -> None:
        """Serve until `stop`, or until the site has another key."""
        with self._account.control() as control:
            self._control = control
            self._ask(control, None)
            try:
                while not self._stopped:
                    self._hear(control)
                    if self._reap() or time.monotonic() > self._heard + _ASK_AGAIN_S:
                        self._ask(control, None)
                    self._look()
            except AccessDeniedError:
                account = account_of(self._home)
                if account == self._account:
                    raise
                self._account = account  # `flare rotate` was here

    def _ask(self, control: Control, known: Sequence[str] | None) -> None:
        request = AwaitRuns(known=None if known is None else list(known))
        self._heard = time.monotonic()
        control.send(request)

    def _hear(self, control: Control) -> None:
        """Wait for news, of whatever kind."""
        names = control.receive(list[SiteName], timeout_s=_LOOK_S)
        address = self._account.address
        if control.lost and self._first(_SERVER, "lost"):
            self._say(f"no server answers at {address}: waiting for it")
            self._ask(control, None)
        if names is None:
            return
        if self._first(_SERVER, "there"):
            self._say(f"site {self._account.name} is connected to {address}")
        for run in [one for one in self._said if one in self._awaiting]:
            if run not in names and run not in self._jobs:
                del self._said[run]
                self._say(f"run {run}: awaits this site no more")
        self._awaiting = names
        self._ask(control, names)

    def _look(self) -> None:
        """Start what is to be started now."""
        if all(run in self._jobs for run in self._awaiting):
            return
        try:
            self._site = read_site(self._file)
        except ConfigurationError as exc:
            if self._first(_FILE, str(exc)):
                self._say(f"nothing is started: {exc}")
            return
        self._said.pop(_FILE, None)
        running = {run: job.start.gpus for run, job in self._jobs.items()}
        for decision in schedule(
            self._site, self._awaiting, running=running, tried=self._tried
        ):
            if isinstance(decision, Hold):
                self._hold(decision)
            else:
                self._start(decision)

    def _hold(self, hold: Hold) -> None:
        if not self._first(hold.run, hold.why):
            return
        if hold.why in ("policy", "not bound"):
            self._note(hold.why, hold.run, words=hold.words)
        self._say(f"run {hold.run}: {hold.words}")

    def _start(self, start: Start) -> None:
        run, words = start.run, list(start.binding.command)
        try:
            self._audit.note(
                "command started",
                run=run,
                site=self._site.name,
                command=words,
                gpus=list(start.gpus),
            )
        except ConfigurationError as exc:
            if self._first(run, "audit"):
                self._say(f"run {run}: is not started: {exc}")
            return
        self._said.pop(run, None)
        try:
            process = start_bound(self._site, start, partial(self._ended, run))
        except ConfigurationError as exc:
            self._note("command ended", run, words=str(exc))
            self._say(f"run {run}: {exc}")
            self._remember(start, failed=True, words="could not be started")
            return
        self._jobs[run] = _Job(start, process, time.monotonic())
        gpus = f", GPUs {','.join(start.gpus)}" if start.gpus else ""
        log = log_of_run(self._site, run)
        self._say(f"run {run}: started, pid {process.pid}{gpus}, log {log}")

    def _ended(self, run: str, code: int) -> None:
        """Note the end of a process; called on a thread that waits for it."""
        self._ends.put((run, code))
        self._wake()

    def _reap(self) -> bool:
        """Take note of the commands that have ended; return whether any has."""
        found = False
        while not self._ends.empty():
            found = True
            run, code = self._ends.get()
            job = self._jobs[run]
            end([job.process], grace_s=_GRACE_S)  # what it left behind has its GPUs
            del self._jobs[run]
            self._awaiting = [one for one in self._awaiting if one != run]
            self._note("command ended", run, code=code)
            seconds = time.monotonic() - job.since
            self._say(f"run {run}: {in_words(code)} after {seconds:.0f} s")
            self._remember(job.start, failed=code != 0, words=in_words(code))
        return found

    def _remember(self, start: Start, *, failed: bool, words: str) -> None:
        before = self._tried.get(start.run)
        same = before is not None and before.binding == start.binding
        times = 1 + (before.times if before is not None and same else 0)
        self._tried[start.run] = Tried(
            binding=start.binding, times=times, failed=failed, words=words
        )

    def _end_all(self) -> None:
        if self._jobs:
            self._say(f"ending {', '.join(self._jobs)}")
        end([job.process for job in self._jobs.values()], grace_s=_GRACE_S)
        self._reap()

    def _note(self, event: str, run: str, **facts: str | int) -> None:
        """Put into the audit log what is so, noted or not."""
        try:
            self._audit.note(event, run=run, site=self._site.name, **facts)
        except ConfigurationError as exc:
            self._say(f"run {run}: {event!r} is not in the audit log: {exc}")

    def _first(self, about: str, what: str) -> bool:
        """Return whether this was not what was said last of something."""
        new = self._said.get(about) != what
        self._said[about] = what
        return new


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Be the only agent of a site.

    Raises:
        ConfigurationError: If there is another one.
    """
    path = folder / "agent.lock"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            msg = f"{path}: expected no other agent of this site, one runs already"
            raise ConfigurationError(msg) from exc
        except OSError as exc:
            msg = f"{path}: {exc.strerror}; the site's folder must be writable"
            raise ConfigurationError(msg) from exc
        yield
