"""What a round waits for that it cannot do without, told to all."""

from typing import final

from flare_core._plan import Plan
from flare_core.application._distribution import Send
from flare_core.application._events import EndsEarly, Observer, RunPaused, RunResumed
from flare_core.application._guests import in_words
from flare_core.application._lobby import Lobby
from flare_core.communication import Notice
from flare_core.federation import Round


@final
class Waiting:
    """Says when a run pauses, and when it goes on.

    Args:
        plan: What is played.
        lobby: Who takes part.
        send: How to reach a site.
        observer: Told of it, too.

    Attributes:
        reason: What the run waits for; empty while it does not.
    """

    def __init__(
        self, plan: Plan, lobby: Lobby, send: Send, observer: Observer
    ) -> None:
        self._least = plan.selection.least
        self._lobby = lobby
        self._send = send
        self._observer = observer
        self.reason = ""

    def look(self, current: Round, *, overdue: bool) -> None:
        """Say what has changed.

        Args:
            current: The round that is played.
            overdue: Whether its deadline has passed.
        """
        self._say(in_words(self._reason(current, overdue=overdue)), current.number)

    def over(self, rounds: int, why: str) -> None:
        """Say that nothing is waited for any more.

        Args:
            rounds: How many were played.
            why: If the plan has more: the reason.
        """
        self._say("", rounds - 1)
        if why:
            self._observer(EndsEarly(rounds, why))
            self._tell(f"the run ends after {rounds} rounds: {why}")

    def _say(self, reason: str, number: int) -> None:
        if reason == self.reason:
            return
        self.reason = reason
        self._observer(RunPaused(number, reason) if reason else RunResumed(number))
        self._tell(reason or f"round {number} goes on")

    def _tell(self, words: str) -> None:
        for site in sorted(self._lobby.present):
            self._send(site, Notice(words=words))

    def in_vain(self, current: Round, why: str) -> str:
        """Return what to say where nobody is waited for."""
        return (
            f"round {current.number}: {why}. The quorum of {self._least} cannot be "
            "reached; set selection.quorum in the plan to go on without it"
        )

    def _reason(self, current: Round, *, overdue: bool) -> str:
        number, here = current.number, len(current.num_examples)
        if current.short_by:
            return (
                f"round {number} needs {self._least} updates; {current.short_by} of "
                f"these must come back: {self._lobby.gone_in_words(current.cohort)}"
            )
        if overdue and here < self._least:
            return (
                f"round {number} is past its deadline and needs {self._least} updates; "
                f"{here} are in, and it waits for {', '.join(current.missing)}"
            )
        return ""


def ahead(site: str, its: int, ours: int) -> str:
    """Return what to say to a site that is further than the server.

    Args:
        site: Which.
        its: The round that it is in.
        ours: That of the server.
    """
    return (
        f"site {site!r} is in round {its}, and the server in round {ours}: was its "
        "folder put back to an earlier state?"
    )
