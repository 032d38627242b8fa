"""One run of one framework: its processes, what they note, and what their server takes.

The server's memory is that of all processes that hold a model on its side, summed:
those that the framework's file starts with ``server=True``, and that in which the
framework runs the job's server code, which notes its number in ``FOLDER/server.pid``.
It is looked at 20 times a second, from the start of the run to the last model that a
site receives; for a single process the greatest resident size is exact, the kernel's
own ``VmHWM``.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, final

from _peers._job import Job, Receipts, RunFailedError
from _peers._processes import available_bytes, end_descendants, listens, memory_of

_LOOK_S = 0.05
_PATIENCE_S = 600.0
_START_S = 60.0
_SPARE_BYTES = 768 * 2**20
_LAST_WORDS = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a run has shown.

    Attributes:
        seconds: How long each counted round took.
        resident_bytes: The most memory the server had, pages of files included.
        anonymous_bytes: The same without them.
    """

    seconds: list[float]
    resident_bytes: int
    anonymous_bytes: int


@final
class Run:
    """A job under way.  As a context manager it leaves no process behind.

    Args:
        job: What is done.
        folder: An empty folder of the run's own; logs go there.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self._receipts = Receipts(folder, job)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._servers: set[int] = set()
        self._resident_bytes = 0
        self._anonymous_bytes = 0

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        variables: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        server: bool = False,
    ) -> None:
        """Start a program that has to live until the job is done.

        Args:
            name: Its output goes to ``FOLDER/NAME.log``.
            command: Path of the program, and its arguments.
            variables: Environment variables beside our own.
            cwd: Where it runs; by default the run's folder.
            server: Whether it holds models for the server.
        """
        process = self._open(name, command, variables or {}, cwd or self.folder)
        self._processes[name] = process
        if server:
            self._servers.add(process.pid)

    def call(
        self, name: str, command: Sequence[str | Path], variables: Mapping[str, str]
    ) -> None:
        """Run a program to its end.

        Args:
            name: Its output goes to ``FOLDER/NAME.log``.
            command: Path of the program, and its arguments.
            variables: Environment variables beside our own.

        Raises:
            RunFailedError: If it fails.
        """
        code = self._open(name, command, variables, self.folder).wait()
        if code != 0:
            msg = f"{name} ended with code {code}: {self._last_words(name)}"
            raise RunFailedError(msg)

    def wait_for_port(self, port: int) -> None:
        """Return when somebody listens on a port of 127.0.0.1."""
        self._wait(lambda: listens(port), f"nobody listens on port {port}")

    def wait_for_file(self, path: Path) -> str:
        """Return the text of a file, once there is one that is not empty."""
        self._wait(
            lambda: path.exists() and bool(path.read_text()), f"{path} is not there"
        )
        return path.read_text()

    def measure(self) -> Measurement:
        """Look on until every site has received the last model.

        Raises:
            RunFailedError: If a process ends before, or nothing happens for 10 minutes,
                or the machine is about to run out of memory.
        """
        count, since = 0, time.monotonic()
        while not self._receipts.complete():
            self._look_at_memory()
            self._check_processes()
            if self._receipts.count() > count:
                count, since = self._receipts.count(), time.monotonic()
            elif time.monotonic() - since > _PATIENCE_S:
                msg = f"after {count} models nothing more for {_PATIENCE_S:.0f} s"
                raise RunFailedError(msg)
            time.sleep(_LOOK_S)
        self._look_at_memory()
        return Measurement(
            seconds=self._receipts.seconds(),
            resident_bytes=self._resident_bytes,
            anonymous_bytes=self._anonymous_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end_descendants()
        for process in self._processes.values():
            process.wait()

    def _open(
        self,
        name: str,
        command: Sequence[str | Path],
        variables: Mapping[str, str],
        cwd: Path,
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, done: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + _START_S
        while not done():
            self._check_processes()
            if time.monotonic() > deadline:
                msg = f"{complaint} after {_START_S:.0f} s"
                raise RunFailedError(msg)
            time.sleep(_LOOK_S)

    def _look_at_memory(self) -> None:
        with suppress(FileNotFoundError, ValueError):  # ValueError: not written yet
            self._servers.add(int((self.folder / "server.pid").read_text()))
        found = [memory_of(pid) for pid in self._servers]
        name = "VmHWM" if len(found) == 1 else "VmRSS"
        resident = sum(fields.get(name, 0) for fields in found)
        anonymous = sum(fields.get("RssAnon", 0) for fields in found)
        self._resident_bytes = max(self._resident_bytes, resident)
        self._anonymous_bytes = max(self._anonymous_bytes, anonymous)
        if available_bytes() < _SPARE_BYTES:
            msg = "stopped, for the machine is about to run out of memory"
            raise RunFailedError(msg)

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None and not self._receipts.complete():
                msg = (
                    f"{name} ended with code {process.returncode} after "
                    f"{self._receipts.count()} models: {self._last_words(name)}"
                )
                raise RunFailedError(msg)

    def _last_words(self, name: str) -> str:
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_LAST_WORDS:])
