"""Who knows the plan of a run, and who was refused."""

from typing import final

from msgspec import structs

from flare_core._errors import Refusal
from flare_core.application._distribution import Send
from flare_core.application._events import Observer, SiteRefused
from flare_core.communication import Aborted, Refused, Welcome

_LONGEST_REASON = 2000


@final
class Guests:
    """Greets sites, and tells them of what concerns them even before they join.

    Args:
        welcome: What a site is told when it says hello.
        send: How to reach a site.
        observer: Told of refusals.
    """

    def __init__(self, welcome: Welcome, send: Send, observer: Observer) -> None:
        self._welcome = welcome
        self._send = send
        self._observer = observer
        self._welcomed: set[str] = set()
        self._refused: dict[str, Refused] = {}

    def greet(self, site: str) -> bool:
        """Send the plan to a site; tell whether something of it was refused."""
        self._welcomed.add(site)
        self._send(site, self._welcome)
        refused = self._refused.get(site)
        if refused is not None:  # it may have been lost on its way
            self._send(site, refused)
        return refused is not None

    def refuse(self, refusal: Refusal) -> None:
        """Tell a site, and the record, that something of it is not accepted.

        What was expected of it may be in another site's words.
        """
        refusal = structs.replace(refusal, expected=in_words(refusal.expected))
        self._observer(SiteRefused(refusal))
        self._refused[refusal.site] = refused = Refused(refusal=refusal)
        self._send(refusal.site, refused)

    def forgive(self, site: str) -> None:
        """Let a site that was refused try again."""
        self._refused.pop(site, None)

    def turn_away(self, site: str, reason: str) -> None:
        """Tell a site that it does not take part."""
        self._send(site, Aborted(reason=reason))

    def lost(self, site: str) -> None:
        """Tell a site that seems to take part that it does not."""
        reason = (
            f"the server knows nothing of site {site!r} in this run: it never joined, "
            "or the run's folder was lost; start its script again"
        )
        self.turn_away(site, reason)

    def dismiss(self, reason: str) -> None:
        """Tell all that the run ends here."""
        message = Aborted(reason=in_words(reason))
        for site in sorted(self._welcomed):  # one may still be loading its model
            self._send(site, message)


def in_words(reason: str) -> str:
    """Return what may be somebody's own words, fit for logs and terminals."""
    start = reason[:_LONGEST_REASON]
    return "".join(one if one.isprintable() else " " for one in start)
