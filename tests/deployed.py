"""A real server for real sites, in a thread, with members that the tests play."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import msgspec
import tomli_w

import flare_core as flare
from flare_core.application import audit_lines, verify_audit
from flare_core.communication import (
    Control,
    CreateRun,
    Done,
    Invitation,
    Invite,
    KeyPair,
    Revoke,
    Role,
    RunInfo,
    Secured,
    ServerStatus,
    ShowRun,
    Status,
    StopRun,
)
from flare_core.management._account import Account, account_of
from flare_core.management._deployment import ServerFolder, ServerSettings, Service
from flare_core.management._enrolment import accept_invitation, read_invitation
from flare_core.management._run_reading import follow
from simulated import COMMAND
from site_scripts import WAIT_S, Local, Stranger, Train, model, plan, play, wander

AuditLine = Mapping[str, Any]
_DAY_S = 86_400.0
PATIENCE_S = 30.0
"""Of sites: a test that goes wrong is not to wait for an hour."""
_MODEL = model(*range(1000))


@final
class ServerThread:
    """A server in a thread of the tests' own process."""

    pid = os.getpid()

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        opened: Future[Service] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=[opened], daemon=True)
        self._thread.start()
        self._service = opened.result(WAIT_S)

    def _serve(self, opened: Future[Service]) -> None:
        """Make the server where it serves: SQLite wants one thread."""
        try:
            service = Service(self._folder)
        except BaseException as exc:  # noqa: BLE001 - as below
            opened.set_exception(exc)
            return
        opened.set_result(service)
        try:
            service.run()
            self._ended.set_result(None)
        except BaseException as exc:  # noqa: BLE001 - the test's thread raises it
            self._ended.set_exception(exc)

    def close(self) -> None:
        """End it; raise what it raised."""
        self._service.stop("the test is over")
        self._ended.result(WAIT_S)
        self._thread.join(WAIT_S)


@final
class ServerProcess:
    """A server as the command starts it."""

    def __init__(self, folder: ServerFolder) -> None:
        self._log = folder.path / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [COMMAND, "server", "start", folder.path], stdout=log, stderr=log
            )
        self.pid = self._process.pid

    def kill(self) -> None:
        """End it at once, as a loss of power does."""
        self._process.kill()
        self._process.wait(WAIT_S)

    def close(self) -> None:
        """End it, unless it has ended; say what it said if it did not end well."""
        self._process.terminate()
        code = self._process.wait(WAIT_S)
        assert code == 0, self._log.read_text()
        assert "Traceback" not in self._log.read_text()


@final
class Deployment:
    """A server on loopback, and the folders of its members.

    Args:
        path: A folder with a short name: there are sockets in it.
        process: Whether the server has a process of its own.
        settings: What else ``server.toml`` says.
    """

    def __init__(
        self, path: Path, *, process: bool = False, **settings: object
    ) -> None:
        self.path = path
        self.folder = ServerFolder(path / "srv")
        self.folder.make(ServerSettings(listen="tcp://127.0.0.1:0"))
        tree = {"listen": "tcp://127.0.0.1:0", **settings}
        self.folder.settings_file.write_text(tomli_w.dumps(tree))

        self._server = (ServerProcess if process else ServerThread)(self.folder)
        with self.admin() as admin:
            self.endpoint: str = admin.ask(Status(), ServerStatus).address
        tree["listen"] = self.endpoint  # the same one when it is started again
        self.folder.settings_file.write_text(tomli_w.dumps(tree))

    def close(self) -> None:
        """End the server; raise what it raised, and what is wrong with its audit."""
        self._server.close()
        assert verify_audit(self.folder.path).problems == ()

    def stop(self) -> None:
        """End the server, for `start` to start it again; raise what it raised."""
        self._server.close()

    def kill(self) -> None:
        """End a server that is a process at once, for `start` to start it again."""
        assert isinstance(self._server, ServerProcess)
        self._server.kill()

    def start(self) -> None:
        """Start the server again, where it was before."""
        self._server = type(self._server)(self.folder)

    @property
    def rss_bytes(self) -> int:
        """The memory that the server's process has."""
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def admin(self) -> Control:
        """Return a line to the desk, for whoever may read the server's folder."""
        return account_of(self.folder.path).control()

    def server_key(self) -> bytes:
        """Return the server's public key."""
        return self.folder.keys("server").public

    def invitation(
        self, name: str, *, role: Role = "site", valid_s: float = _DAY_S
    ) -> Path:
        """Return the file of a new invitation."""
        request = Invite(name=name, role=role, valid_s=valid_s)
        with self.admin() as admin:
            found = admin.ask(request, Invitation)
        path = self.path / f"{name}.invitation"
        path.write_text(tomli_w.dumps(msgspec.to_builtins(found)))
        return path

    def member(self, name: str, site_file: str = "", *, role: Role = "site") -> Path:
        """Return the folder of a new member.

        Args:
            name: His name.
            site_file: What his site file says beside who he is.
            role: His role.
        """
        home = self.path / name
        file, _ = accept_invitation(self.invitation(name, role=role), home)
        with file.open("a") as opened:
            opened.write(site_file)
        return home

    def site(self, name: str, run: str, /, **settings: object) -> Path:
        """Return a site file of a member, for a run."""
        home = self.path / name
        tree = msgspec.toml.decode((home / "site.toml").read_bytes(), type=dict)
        path = home / f"{run}.toml"
        told = {"run": run, "patience_s": PATIENCE_S, **settings}
        path.write_text(tomli_w.dumps({**tree, **told}))
        return path

    def account(self, name: str) -> Account:
        """Return what is needed to speak as a member."""
        return account_of(self.path / name)

    def peer(self, name: str) -> Stranger:
        """Return a member that says whatever the test wants it to."""
        return Stranger(self.endpoint, secured=self.account(name).secured)

    def invited(self, invitation: Path) -> Control:
        """Return a line to the desk, for who has an invitation and no more."""
        secured = _by_token(invitation)
        return Control(self.endpoint, name="invited", secured=secured)

    def invited_peer(self, invitation: Path) -> Stranger:
        """Return who has an invitation, and says whatever the test wants."""
        return Stranger(self.endpoint, secured=_by_token(invitation))

    def revoke(self, name: str) -> None:
        """Revoke a member."""
        with self.admin() as admin:
            admin.ask(Revoke(name=name), Done)

    def create(self, name: str, plan: flare.Plan) -> None:
        """Open a run."""
        with self.admin() as admin:
            admin.ask(CreateRun(name=name, plan=plan), Done)

    def end(self, run: str) -> None:
        """Stop a run."""
        with self.admin() as admin:
            admin.ask(StopRun(run=run, reason="enough"), Done)

    def info(self, run: str) -> RunInfo:
        """Return how a run stands."""
        with self.admin() as admin:
            return admin.ask(ShowRun(run=run), RunInfo)

    def ended(self, run: str) -> RunInfo:
        """Wait for the end of a run, and return how it stands."""
        with self.admin() as admin:
            for _ in follow(admin, run):
                pass
            return admin.ask(ShowRun(run=run), RunInfo)

    def said(self, run: str, words: str) -> None:
        """Wait until this is said of a run."""
        said: list[str] = []
        with self.admin() as admin:
            for line in follow(admin, run):
                if words in line:
                    return
                said.append(line)
        msg = f"run {run!r} is over, and nobody said {words!r}:\n{said}"
        raise AssertionError(msg)

    def audit(self) -> list[AuditLine]:
        """Return all that the server has written down."""
        return self.audit_of(self.folder.path)

    def audit_of(self, home: Path) -> list[AuditLine]:
        """Return all that a member has written down."""
        lines = audit_lines(home)  # the last one may be written just now
        return [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]

    def audited(
        self, event: str, *, after: AuditLine | None = None, **facts: object
    ) -> AuditLine:
        """Wait until the server has written something down, and return it.

        It is asked for its status meanwhile: between two answers it has done something.
        """
        seq = 0 if after is None else after["seq"]
        with self.admin() as admin:
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline:
                for line in self.audit():
                    later = line["seq"] > seq
                    if later and line["event"] == event and _has(line, facts):
                        return line
                admin.ask(Status(), ServerStatus)
        said = "\n".join(str(line) for line in self.audit())
        msg = f"no line {event!r} with {facts} in the audit:\n{said}"
        raise AssertionError(msg)


def _has(line: AuditLine, facts: Mapping[str, object]) -> bool:
    return all(line.get(name) == fact for name, fact in facts.items())


@contextmanager
def deployment(*, process: bool = False, **settings: object) -> Iterator[Deployment]:
    """Run a server until the block ends."""
    path = Path(tempfile.mkdtemp(prefix="fl", dir="/tmp"))
    try:
        deployed = Deployment(path, process=process, **settings)
        try:
            yield deployed
        finally:
            deployed.close()
    finally:
        shutil.rmtree(path)


def _by_token(invitation: Path) -> Secured:
    found = read_invitation(invitation)
    return Secured(KeyPair.from_token(found.token), found.server_key.encode())


@final
class Beside:
    """A run of two honest sites, in the middle of its second round.

    Args:
        deployed: Where it is played.
        pool: Threads for its sites.
        name: Its name; its sites are called ``NAME.x`` and ``NAME.y``.
        patience_s: How long it may have to wait in that round.
    """

    def __init__(
        self,
        deployed: Deployment,
        pool: ThreadPoolExecutor,
        *,
        name: str = "beside",
        patience_s: float = WAIT_S,
    ) -> None:
        self._deployed = deployed
        self._name = name
        self._patience_s = patience_s
        self._in_round = threading.Barrier(3)
        self._go_on = threading.Event()
        deployed.create(name, plan(rounds=3))
        self._sites = [pool.submit(self._play, letter) for letter in "xy"]
        self._in_round.wait(WAIT_S)

    def blake3(self) -> str:
        """Play it to its end, and return the hash of its final model."""
        self._go_on.set()
        for site in self._sites:
            site.result(WAIT_S)
        info = self._deployed.ended(self._name)
        assert (info.state, info.rounds, info.error) == ("finished", 3, "")
        return info.blake3

    def close(self) -> None:
        """Let its sites go on, if they wait still, and wait for their end."""
        self._go_on.set()
        wait(self._sites, WAIT_S)

    def _play(self, letter: str) -> None:
        name = f"{self._name}.{letter}"
        self._deployed.member(name)
        play(self._deployed.site(name, self._name), _MODEL, self._train(letter))

    def _train(self, letter: str) -> Train:
        walk = wander(letter)

        def train(current: flare.ClientRound) -> Local:
            if current.number == 1:
                self._in_round.wait(WAIT_S)
                assert self._go_on.wait(self._patience_s)
            return walk(current)

        return train
