"""A real deployment: a server in a thread, members on disk, and agents as processes."""

import os
import signal
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol, final

import msgspec
import tomli_w

from flare_core import Plan, Selection
from flare_core.communication import (
    Control,
    CreateRun,
    Done,
    Invitation,
    Invite,
    Revoke,
    Role,
    RunInfo,
    ShowRun,
    StopRun,
)
from flare_core.management._account import account_of
from flare_core.management._deployment import ServerFolder, ServerSettings, Service
from flare_core.management._enrolment import accept_invitation
from flare_core.management._run_reading import follow
from simulated import COMMAND, TIMEOUT_S


@final
class Deployment:
    """A server, whose admin the test is.

    Args:
        folder: Gets the server's folder, and one for each member; its path must be
            short, for the server's socket.
        settings: Of the server.
    """

    def __init__(self, folder: Path, settings: ServerSettings) -> None:
        self.folder = folder
        self.server = ServerFolder(folder / "server")
        self.server.make(settings)
        self._change(old_key_s=settings.old_key_s, patience_s=settings.patience_s)
        self.start()

    def start(self) -> None:
        """Start the server, where it was before."""
        self._started: Future[Service] = Future()
        self._ended: Future[None] = Future()
        threading.Thread(target=self._serve, daemon=True).start()
        self._change(listen=self._started.result(TIMEOUT_S).endpoint)

    def stop(self) -> None:
        """Stop the server; raises what it raised."""
        self._started.result(TIMEOUT_S).stop("the test stops it")
        self._ended.result(TIMEOUT_S)

    def control(self) -> Control:
        """Return the admin's line to the server."""
        return account_of(self.server.path).control()

    def enrol(self, name: str, site_file: str = "", *, role: Role = "site") -> Path:
        """Make somebody a member; return his folder.

        Args:
            name: His name, and that of his folder.
            site_file: What his site file says beside who he is.
            role: His role.
        """
        with self.control() as control:
            invite = Invite(name=name, role=role, valid_s=600)
            invitation = control.ask(invite, Invitation)
        path = self.folder / f"{name}.invitation"
        path.write_text(tomli_w.dumps(msgspec.to_builtins(invitation)))
        home = self.folder / name
        file, _ = accept_invitation(path, home)
        with file.open("a") as opened:
            opened.write(site_file)
        return home

    def create(self, run: str, *, sites: int = 1, rounds: int = 1) -> None:
        """Make a run."""
        plan = Plan(rounds=rounds, selection=Selection(sites=sites))
        with self.control() as control:
            control.ask(CreateRun(name=run, plan=plan), Done)

    def halt(self, run: str) -> None:
        """End a run."""
        with self.control() as control:
            control.ask(StopRun(run=run, reason="the test stops it"), Done)

    def revoke(self, name: str) -> None:
        """Let a member in no more."""
        with self.control() as control:
            control.ask(Revoke(name=name), Done)

    def joined(self, run: str) -> None:
        """Wait until a site has joined a run."""
        with self.control() as control:
            said = ""
            for piece in follow(control, run):
                said += piece
                if " joined" in said:
                    return

    def outcome(self, run: str) -> RunInfo:
        """Wait for the end of a run, and return how it stands."""
        with self.control() as control:
            for _ in follow(control, run):
                pass
            return control.ask(ShowRun(run=run), RunInfo)

    def _serve(self) -> None:
        """Serve, on a thread; its store belongs to it."""
        try:
            service = Service(self.server)
            self._started.set_result(service)
            service.run()
            self._ended.set_result(None)
        except BaseException as exc:  # noqa: BLE001 - the test's thread raises it
            for future in (self._started, self._ended):
                if not future.done():
                    future.set_exception(exc)

    def _change(self, **settings: str | float) -> None:
        tree = msgspec.toml.decode(self.server.settings_file.read_bytes())
        self.server.settings_file.write_text(tomli_w.dumps(tree | settings))


@final
class AgentProcess:
    """``flare site agent`` of a site, of which a test reads line by line."""

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [COMMAND, "site", "agent", "--home", home],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, words: str) -> str:
        """Return the next line that has some words in it.

        Raises:
            EOFError: If there is none.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if words in line:
                return line
        msg = f"no line said {words!r}:\n{''.join(self.lines)}"
        raise EOFError(msg)

    def ends(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and all that it said."""
        said, _ = self._process.communicate(timeout=TIMEOUT_S)
        return self._process.returncode, "".join(self.lines) + said

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Have it end, and return as `ends` does."""
        self._process.send_signal(signum)
        return self.ends()

    def close(self) -> None:
        """End it if it has not ended."""
        if self._process.poll() is None:
            self.stop()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Deploy(Protocol):
    """Starts a server; it is stopped when the test ends."""

    def __call__(
        self, *, old_key_s: float = 86_400.0, patience_s: float = 60.0
    ) -> Deployment: ...


class StartAgent(Protocol):
    """Starts the agent of a site; it is ended when the test ends."""

    def __call__(self, home: Path) -> AgentProcess: ...


@final
class Gate:
    """Where one command waits, in ``open(...).read()``, until the test lets it go on.

    Args:
        path: A pipe with a name; made here.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path

    def open(self) -> None:
        """Let it go on; waits for it to come."""
        with self._path.open("w"):
            pass
