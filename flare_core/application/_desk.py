"""Where a server answers what is no part of a run, and decides who may take part."""

from typing import NamedTuple, Protocol, final

from flare_core.application._epilogue import Finished
from flare_core.communication import Answer, Ask, Denied, Hello


@final
class Asker(NamedTuple):
    """Who asks.

    Attributes:
        user: Whose key the connection was opened with; empty without keys.
        peer: The connection.
    """

    user: str
    peer: bytes


class Desk(Protocol):
    """Called on the server's thread."""

    def objection(self, user: str, site: str) -> str:
        """Return why somebody may not take part as a site; empty if he may."""
        ...

    def finished(self, hello: Hello) -> Finished | None:
        """Return the run that a site took part in and means, if that went well."""
        ...

    def answer(self, asker: Asker, ask: Ask) -> Answer | Denied | None:
        """Return the answer to a request; None if it comes later."""
        ...

    def garbage(self, user: str, what: str) -> None:
        """Take note of what somebody sent that means nothing."""
        ...

    def tick(self) -> None:
        """Called every now and then."""
        ...


@final
class NoDesk:
    """Knows nobody: a name is what a site says it is."""

    def objection(self, user: str, site: str) -> str:
        """Let everybody take part."""
        del user, site
        return ""

    def finished(self, hello: Hello) -> None:
        """Return none: the server ends with its run."""
        del hello

    def answer(self, asker: Asker, ask: Ask) -> Denied:
        """Refuse."""
        del asker
        reason = "this server plays one run, and takes no requests"
        return Denied(number=ask.number, reason=reason)

    def garbage(self, user: str, what: str) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Do nothing."""
