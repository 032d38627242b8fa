"""Sites as forks of one process, which has imported what their script imports."""

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from flare_core._errors import RunAbortedError
from flare_core.management._processes import Command

_log = logging.getLogger(__name__)
_PROGRAM = Path(__file__).with_name("_forkserver.py")
_KILLED = -signal.SIGKILL


@final
class Forks:
    """Starts processes of a script that share what they have imported.

    Only on Linux, and only where what is imported at the top of the script can be
    shared; see `_forkserver`.

    Args:
        script: What they run.
        environment: Of the imports.
        log: What the imports print goes there; if that is nothing, it is removed.
        on_ready: Called once from a thread, when processes can be started, or with the
            reason why not.
    """

    def __init__(
        self,
        script: Path,
        environment: Mapping[str, str],
        log: Path,
        on_ready: Callable[[str], None],
    ) -> None:
        self._line, theirs = socket.socketpair()
        self._log = log
        self._started: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._running: dict[int, Future[int]] = {}
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, str(_PROGRAM), str(theirs.fileno()), str(script)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._listener = threading.Thread(
            target=self._listen, args=[on_ready], name="flare-forks", daemon=True
        )
        self._listener.start()

    def start(self, command: Command) -> "Fork":
        """Start a process.

        Args:
            command: The script and its arguments; in no other folder than this one.

        Raises:
            RunAbortedError: If the process that forks has ended.
        """
        task = {
            "words": [str(word) for word in command.words[1:]],
            "environment": dict(command.environment),
            "log": str(command.log),
        }
        with suppress(OSError):  # then the listener knows, too
            self._line.sendall(json.dumps(task).encode() + b"\n")
        pid = self._started.get()
        if pid is None:
            msg = f"the process that forks the sites has ended; see {self._log}"
            raise RunAbortedError(msg)
        return Fork(pid, self._running[pid])

    def close(self) -> None:
        """End the process that forks; its forks have to have ended."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._line.close()
        if not self._log.stat().st_size:
            self._log.unlink()

    def _listen(self, on_ready: Callable[[str], None]) -> None:
        with self._line.makefile("rb") as lines:
            first = lines.readline()
            on_ready(json.loads(first)["unfit"] if first else "it has failed")
            for line in lines:
                self._heard(json.loads(line))
        for pid, ended in self._running.items():
            if not ended.done():
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                ended.set_result(_KILLED)
        self._started.put(None)

    def _heard(self, told: Mapping[str, Any]) -> None:
        pid: int = told["pid"]
        if "code" in told:
            self._running[pid].set_result(told["code"])
        else:
            self._running[pid] = Future()
            self._started.put(pid)


@final
class Fork:
    """A process that was forked; as `subprocess.Popen`, as far as it goes.

    Attributes:
        pid: Its number.
    """

    def __init__(self, pid: int, ended: Future[int]) -> None:
        self.pid = pid
        self._ended = ended

    def poll(self) -> int | None:
        """Return how it ended; None if it has not."""
        return self._ended.result() if self._ended.done() else None

    def wait(self) -> int:
        """Wait until it has ended; return how."""
        return self._ended.result()
