"""Ctrl-C and its relatives, as a call instead of an exception out of nowhere."""

import signal
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

    Args:
        call: Must be safe to call from a signal handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        call()

    before = {signum: signal.signal(signum, handle) for signum in _wanted()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wanted() -> list[signal.Signals]:
    """Under nohup, the end of the terminal is not the end of the run."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in _SIGNALS if not (deaf and s is signal.SIGHUP)]
