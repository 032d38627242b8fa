"""Agents as processes, and what they start, held up until a test lets it go on."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Protocol, final

from deployed import Deployment
from simulated import COMMAND, TIMEOUT_S


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
    """Starts a server with some settings; it is stopped when the test ends."""

    def __call__(self, **settings: float) -> Deployment: ...


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
