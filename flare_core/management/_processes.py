"""A site as a real process: started in a session of its own, and ended for sure."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import msgspec
import tomli_w

from flare_core._site import SITE_VARIABLE, Site
from flare_core.management._family import family, wait_for
from flare_core.management._unchanged import adapted

_THREAD_VARIABLES = (
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_GRACE_S = 3.0
_PLACEHOLDER = re.compile(r"\{(?:site|index|count)\}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What every site runs.

    Attributes:
        path: A Python script.
        args: Its arguments; ``{site}``, ``{index}`` and ``{count}`` in them stand for
            the site's own.
    """

    path: Path
    args: tuple[str, ...] = ()

    def args_of(self, site: Site) -> list[str]:
        """Return the arguments for a site; any other braces stay as they are."""
        own = {"{site}": site.name, "{index}": site.index, "{count}": site.count}
        return [
            _PLACEHOLDER.sub(lambda found: str(own[found[0]]), arg) for arg in self.args
        ]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a process runs.

    Attributes:
        words: A program and its arguments.
        environment: All its variables.
        mark: ``NAME=value``, a variable that tells it, and the processes it starts,
            from all others.
        log: Its output goes there, behind what is there already.
        folder: Where it is started; in this process's own if None.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    mark: str
    log: Path
    folder: Path | None = None


def simulated(script: Script, site: Site, folder: Path, *, num_threads: int) -> Command:
    """Return the command of a simulated site, and write its site file.

    Args:
        script: What to run.
        site: Who it is; written to ``NAME.toml`` in the folder.
        folder: Its output goes there too, to ``NAME.log``.
        num_threads: Its share of the machine's cores.
    """
    site_file = folder / f"{site.name}.toml"
    site_file.write_text(tomli_w.dumps(msgspec.to_builtins(site)))
    return Command(
        words=[sys.executable, str(script.path), *script.args_of(site)],
        environment=environment_of(site_file, num_threads),
        mark=f"{SITE_VARIABLE}={site_file}",
        log=log_of(folder, site.name),
    )


class Started(Protocol):
    """A process that leads a session of its own, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int:
        """Its number, which is that of its session and its group as well."""
        ...

    def poll(self) -> int | None:
        """Return its exit code; None if it has not ended."""
        ...

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code."""
        ...


def spawned(command: Command) -> Started:
    """Start a command as a program of its own.

    Raises:
        OSError: If there is no such program, or no such folder.
    """
    with command.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the user's own command
            command.words,
            cwd=command.folder,
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@final
class SiteProcess:
    """A running command, with all the processes it starts.

    Args:
        command: What to run.
        on_end: Called with the exit code, from a thread that waits for it.
        start: Starts it.

    Attributes:
        pid: Of the first of them.

    Raises:
        OSError: If there is no such program, or no such folder.
    """

    def __init__(
        self,
        command: Command,
        on_end: Callable[[int], None],
        start: Callable[[Command], Started] = spawned,
    ) -> None:
        self._mark = command.mark
        self._process = start(command)
        self.pid = self._process.pid
        self._waiter = threading.Thread(
            target=lambda: on_end(self._process.wait()),
            name=f"flare-waiter-{self.pid}",
            daemon=True,
        )
        self._waiter.start()

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to all its processes, to each once."""
        told = self._send_to_group(signum)
        for pid in self._family:
            with suppress(ProcessLookupError):
                if not (told and os.getpgid(pid) == self._process.pid):
                    os.kill(pid, signum)

    def wait(self, deadline: float) -> None:
        """Return when all its processes have ended, or at the deadline."""
        self._waiter.join(max(0.0, deadline - time.monotonic()))
        wait_for(self._family, timeout_s=deadline - time.monotonic())

    @property
    def _family(self) -> list[int]:
        return family(self._mark, session=self.pid)

    def _send_to_group(self, signum: signal.Signals) -> bool:
        if self._process.poll() is not None:
            return False  # its number may be somebody else's now
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signum)
            return True
        return False


def end(processes: Iterable[SiteProcess], *, grace_s: float = _GRACE_S) -> None:
    """End them all: politely, and after a grace for sure."""
    running = list(processes)
    deadline = time.monotonic() + grace_s
    for process in running:
        process.send(signal.SIGTERM)
    for process in running:
        process.wait(deadline)
    for process in running:
        process.send(signal.SIGKILL)
    for process in running:
        process.wait(time.monotonic() + _GRACE_S)


def log_of(folder: Path, site: str) -> Path:
    """Return the file that a site's output goes to."""
    return folder / f"{site}.log"


def cores() -> int:
    """Return the cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_words(code: int) -> str:
    """Return how a process ended, e.g. ``"was killed by SIGKILL"``."""
    if code >= 0:
        return f"ended with code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def environment_of(site_file: Path | str, num_threads: int) -> dict[str, str]:
    """Return the variables of a simulated site.

    Args:
        site_file: Who it is.
        num_threads: Its share of the machine's cores.
    """
    limits = {name: _limit(name, num_threads) for name in _THREAD_VARIABLES}
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",  # sites share cores: who waits must not spin
        **os.environ,
        **limits,
        SITE_VARIABLE: str(site_file),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return adapted(environment)


def _limit(name: str, num_threads: int) -> str:
    """Return the share of a site, or less if the user wants less."""
    wanted = os.environ.get(name, "")
    return str(min(int(wanted), num_threads) if wanted.isdecimal() else num_threads)
