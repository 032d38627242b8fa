"""Ctrl-C and its relatives, as a call instead of an exception out of nowhere."""

import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts(call: Callable[[], None]) -> Generator[None]:
    """Call a function when the process is asked to end; nothing is raised.

    So nobody is interrupted between starting a process and noting that it runs.
    Outside the main thread, where signals do not arrive, this does nothing.

    A Python handler runs only once the main thread does, and one that waits for a lock
    may sleep on: a signal that came just before, or to another thread, does not wake
    it. So Python writes the signal's number to a socket, and a thread reads it.

    Args:
        call: Called from another thread, once for each signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = _wanted()
    ours, python = socket.socketpair()
    python.setblocking(False)  # Python asks for it: a handler must not wait
    thread = threading.Thread(
        target=_listen, args=[ours, wanted, call], name="flare-signals"
    )
    thread.start()
    wakeup_fd = signal.set_wakeup_fd(python.fileno())
    handlers = {signum: signal.signal(signum, _pass) for signum in wanted}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup_fd)
        python.close()
        thread.join()
        ours.close()


def _listen(
    ours: socket.socket, wanted: list[signal.Signals], call: Callable[[], None]
) -> None:
    while numbers := ours.recv(64):
        for number in numbers:
            if number in wanted:
                call()


def _pass(signum: int, frame: FrameType | None) -> None:
    """Let Python note the signal; the thread does the rest."""


def _wanted() -> list[signal.Signals]:
    """Under nohup, the end of the terminal is not the end of the run."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in _SIGNALS if not (deaf and s is signal.SIGHUP)]
