"""A site's agent: starts what the site itself binds to the runs that await it.

The server says names of runs, and nothing else that counts here.
"""

import fcntl
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import final

from flare_core._errors import AccessDeniedError, ConfigurationError
from flare_core._site import Site, SiteName
from flare_core._site import site as read_site
from flare_core.application import AuditLog
from flare_core.communication import AwaitRuns, Control
from flare_core.management._account import account_of, site_file_of
from flare_core.management._diary import Diary
from flare_core.management._jobs import Jobs
from flare_core.management._scheduler import Hold, Start, schedule

_LOOK_S = 2.0
"""How often the site file is looked at while a run awaits the site."""
_ASK_AGAIN_S = 60.0
"""A server that says nothing for so long may have missed what it was asked."""
_AUDITED = ("policy", "not bound")
"""Why a run is held, if that is more than waiting."""
_SERVER, _FILE = "the server", "the site file"  # no run is called so


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
        self._folder = Path(read_site(self._file).folder)
        self._diary = Diary(AuditLog(self._folder), self._account.name, say)
        self._jobs = Jobs(self._diary, self._wake)
        self._awaiting: Sequence[str] = ()
        self._control: Control | None = None
        self._asked = 0.0
        self._stopped = False

    def run(self) -> None:
        """Serve the site until `stop`; then no process is left.

        Raises:
            AccessDeniedError: If the site's key was revoked.
            RequestDeniedError: If this is no site.
            ProtocolError: If the server says what makes no sense.
            ConfigurationError: If another agent serves the site already.
        """
        with _alone(self._folder):
            try:
                while not self._stopped:
                    self._serve()
            finally:
                self._jobs.end()

    def stop(self) -> None:
        """End it; from any thread."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        if self._control is not None:
            self._control.wake()

    def _serve(self) -> None:
        """Serve until `stop`, or until the site has another key."""
        with self._account.control() as control:
            self._control = control
            self._ask(control)
            try:
                while not self._stopped:
                    self._hear(control)
                    self._reap(control)
                    self._look()
            except AccessDeniedError:
                account = account_of(self._home)
                if account.secured == self._account.secured:
                    raise
                self._account = account  # `flare rotate` was here

    def _ask(self, control: Control, known: Sequence[str] | None = None) -> None:
        self._asked = time.monotonic()
        control.send(AwaitRuns(known=None if known is None else list(known)))

    def _hear(self, control: Control) -> None:
        """Wait for news, of whatever kind."""
        names = control.receive(list[SiteName], timeout_s=_LOOK_S)
        name, address = self._account.name, self._account.address
        if names is not None:
            if self._diary.is_new(_SERVER, "there"):
                self._diary.say(f"site {name} is connected to {address}")
            self._await(names)
            self._ask(control, names)
        elif control.lost:
            if self._diary.is_new(_SERVER, "lost"):
                self._diary.say(f"no server answers at {address}: waiting for it")
                self._ask(control)  # so that it answers at once when it is back
        elif time.monotonic() > self._asked + _ASK_AGAIN_S:
            self._ask(control)

    def _await(self, names: Sequence[str]) -> None:
        for run in self._awaiting:
            if run not in names and self._diary.forget(run):
                self._diary.say(f"run {run}: awaits this site no more")
        self._awaiting = names

    def _reap(self, control: Control) -> None:
        """Take note of commands that have ended; ask whether their runs still await."""
        ended = self._jobs.reap()
        if ended:
            self._awaiting = [run for run in self._awaiting if run not in ended]
            self._ask(control)

    def _look(self) -> None:
        """Start what is to be started now."""
        running = self._jobs.running
        if all(run in running for run in self._awaiting):
            return
        try:
            site = read_site(self._file)
        except ConfigurationError as exc:
            if self._diary.is_new(_FILE, str(exc)):
                self._diary.say(f"nothing is started: {exc}")
            return
        self._diary.forget(_FILE)
        tried = self._jobs.tried
        for decision in schedule(site, self._awaiting, running=running, tried=tried):
            if isinstance(decision, Hold):
                self._hold(decision)
            else:
                self._start(site, decision)

    def _hold(self, hold: Hold) -> None:
        if self._diary.is_new(hold.run, hold.why):
            if hold.why in _AUDITED:
                rule = {"rule": hold.rule} if hold.rule else {}
                self._diary.did(hold.why, hold.run, **rule, words=hold.words)
            self._diary.say(f"run {hold.run}: {hold.words}")

    def _start(self, site: Site, start: Start) -> None:
        try:
            self._jobs.start(site, start)
        except ConfigurationError as exc:
            if self._diary.is_new(start.run, "audit"):
                self._diary.say(f"run {start.run}: is not started: {exc}")
        else:
            self._diary.forget(start.run)


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
