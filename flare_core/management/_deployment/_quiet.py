"""How often one may say much the same."""

import time
from typing import final

_QUIET_S = 60.0
_MOST_LINES = 10


@final
class Quiet:
    """Lets a few different things through, each once a minute, and counts the rest."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._said: set[object] = set()
        self._more = 0

    def may_say(self, what: object) -> bool:
        """Return whether this is to be said; if not, it is counted."""
        if time.monotonic() - self._since > _QUIET_S:
            self._since = time.monotonic()
            self._said.clear()
        if what in self._said or len(self._said) >= _MOST_LINES:
            self._more += 1
            return False
        self._said.add(what)
        return True

    def taken(self) -> int:
        """Return how many were not said, and begin to count again."""
        more, self._more = self._more, 0
        return more
