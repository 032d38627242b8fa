"""The anonymous memory of another process, watched while something happens."""

import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self, final

_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+) kB")
_EVERY_S = 0.005


def anonymous_mb(pid: int | None) -> float:
    """Return a process's anonymous memory: what no file stands behind."""
    found = _ANONYMOUS.search(Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


@final
class Watched:
    """Notes the peak of a process's anonymous memory; looks every 5 ms.

    Args:
        pid: The process.

    Attributes:
        peak_mb: At most, until it ended.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mb = anonymous_mb(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.peak_mb = max(self.peak_mb, anonymous_mb(self._pid))
