"""Processes under Linux: how much memory they have, and how all of them end.

Peers start daemons, and daemons of daemons, in sessions of their own.  This process
makes itself their subreaper, so that whoever loses its parent becomes its child: then
all that it started is below it in the tree of processes, and nothing else is.
"""

import ctypes
import os
import signal
import socket
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 4.0
_POLL_S = 0.05


def adopt_orphans() -> None:
    """Become the parent of all descendants whose parents have ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """End all that this process has started: politely, and then for sure."""
    _tell(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while _descendants() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        _reap()
    while _descendants():  # a process may start another one while it is being ended
        _tell(signal.SIGKILL)
        time.sleep(_POLL_S)
        _reap()


def memory_of(pid: int) -> dict[str, int]:
    """Return the fields in kB of ``/proc/PID/status``, in bytes; none if it has ended.

    Of use are ``VmRSS``, what is resident; ``VmHWM``, the most that ever was; and
    ``RssAnon``, what is resident and no file's.
    """
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = (line.split() for line in lines if line.endswith(" kB"))
        return {name.rstrip(":"): 1024 * int(value) for name, value, _ in fields}
    return {}


def available_bytes() -> int:
    """Return how much memory the machine has left."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    msg = "/proc/meminfo does not tell MemAvailable"
    raise OSError(msg)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of 127.0.0.1."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _tell(signum: signal.Signals) -> None:
    for pid in _descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children[int(parent)].append(int(path.parent.name))
    found = list(children[os.getpid()])
    for pid in found:  # grows while it is walked
        found.extend(children[pid])
    return found


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
