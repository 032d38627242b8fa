"""All processes of a site, whatever session they have put themselves into.

``torchrun`` starts its workers in sessions of their own, where no signal to the
site's process group reaches them (torch 2.13,
``distributed/elastic/multiprocessing/subprocess_handler``).  But they inherit its
environment, and Linux shows it.
"""

import os
import select
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

_PROC = Path("/proc")


def family(mark: str, *, session: int) -> list[int]:
    """Return the living processes of a session, or with a variable.

    Empty where there is no ``/proc``: then the process group has to do.

    Args:
        mark: The variable, as ``NAME=value``.  Those who were forked and run no program
            of their own do not show theirs.
        session: The number of the session.
    """
    wanted = mark.encode()
    return [
        pid
        for pid in _all_pids()
        if _session(pid) == session or wanted in _environment(pid)
    ]


def wait_for(pids: Iterable[int], *, timeout_s: float) -> None:
    """Return when these processes have ended, or the time is over."""
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        poll = select.poll()
        alive: set[int] = set()
        for pid in pids:
            with suppress(OSError):  # it has just ended
                fd = os.pidfd_open(pid)
                stack.callback(os.close, fd)
                poll.register(fd, select.POLLIN)
                alive.add(fd)
        while alive and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                alive.remove(fd)


def _all_pids() -> list[int]:
    return [int(path.name) for path in _PROC.glob("[0-9]*")]


def _session(pid: int) -> int | None:
    """Return the session of a process; None for a zombie, or if it has ended."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    state, _, _, session, *_ = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(session)


def _environment(pid: int) -> list[bytes]:
    """Return its variables; none for a zombie or another user's process."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
