"""What an agent says and writes down."""

from collections.abc import Callable
from typing import TypeAlias, final

from flare_core._errors import ConfigurationError
from flare_core.application import AuditLog

Fact: TypeAlias = str | int | list[str]


@final
class Diary:
    """Knows what was said, so that it is said once, and keeps the site's audit log.

    Args:
        audit: The log.
        site: The site's name.
        say: Told lines.

    Attributes:
        say: The same.
    """

    def __init__(self, audit: AuditLog, site: str, say: Callable[[str], None]) -> None:
        self.say = say
        self._audit = audit
        self._site = site
        self._last: dict[str, str] = {}

    def is_new(self, about: str, what: str) -> bool:
        """Return whether this is not what was said last about something."""
        new = self._last.get(about) != what
        self._last[about] = what
        return new

    def forget(self, about: str) -> bool:
        """Forget what was said about something; return whether there was anything."""
        return self._last.pop(about, None) is not None

    def will(self, event: str, run: str, **facts: Fact) -> None:
        """Write down what is done next.

        Raises:
            ConfigurationError: If it cannot be written down: then it must not be done.
        """
        self._audit.note(event, run=run, site=self._site, **facts)

    def did(self, event: str, run: str, **facts: Fact) -> None:
        """Write down what is so, whether it can be or not."""
        try:
            self.will(event, run, **facts)
        except ConfigurationError as exc:
            self.say(f"run {run}: {event!r} is not in the audit log: {exc}")
