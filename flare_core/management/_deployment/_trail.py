"""What goes into the audit log of a server, in its words."""

import math
import time
from collections.abc import Sequence
from typing import TypeAlias, final

from flare_core.application import (
    AuditLog,
    Event,
    Published,
    RoundPlayed,
    RunEnded,
    SiteJoined,
    SiteLeft,
    SiteRefused,
)
from flare_core.communication import TurnedAway

Fact: TypeAlias = str | float | Sequence[str]
_QUIET_S = 60.0
"""The same refusal again is counted for so long before it is written down."""
_MOST_KINDS = 200
"""So many refusals are told apart in that time; of more, only the kind."""


@final
class Trail:
    """Writes down what happens on a server; for its thread.

    Args:
        log: Where to.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._refusals: dict[tuple[str, ...], tuple[float, int]] = {}

    def note(self, event: str, *, run: str = "", site: str = "", **facts: Fact) -> None:
        """Append a line."""
        self._log.note(event, run=run, site=site, **facts)

    def sign(self) -> None:
        """Sign all lines so far."""
        self._log.sign()

    def refused(self, what: str, *, user: str = "", **facts: str) -> None:
        """Write down that something was refused; of the same again, how often.

        A stranger cannot fill the disk: what repeats is written once a minute, and who
        makes a new key, or claims another name, each time is repeating himself, too.
        """
        now = time.monotonic()
        kind = self._kind(now, (what, user, *sorted(facts.values())))
        since, times = self._refusals.get(kind, (-math.inf, 0))
        if now - since < _QUIET_S:
            self._refusals[kind] = (since, times + 1)
            return
        self._refusals[kind] = (now, 0)
        self._log.note("refused", what=what, user=user, more_before=times, **facts)

    def _kind(self, now: float, kind: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a refusal is counted as: itself, if there is room for it."""
        if kind not in self._refusals and len(self._refusals) >= _MOST_KINDS:
            self._refusals = {
                known: (since, times)
                for known, (since, times) in self._refusals.items()
                if now - since < _QUIET_S
            }
        room = kind in self._refusals or len(self._refusals) < _MOST_KINDS
        return kind if room else kind[:1]

    def turned_away(self, event: TurnedAway, about: str) -> None:
        """Write down that a connection was not let in, or was cut off.

        Args:
            event: What happened.
            about: What is known of its key.
        """
        host = event.address.rpartition(":")[0] or event.address
        self.refused(about or event.why, user=event.user, address=host, key=event.key)

    def event(self, run: str, event: Event) -> None:
        """Write down what happened in a run; a round is signed."""
        match event:
            case SiteJoined():
                self.note("joined", run=run, site=event.site, base=event.base)
            case SiteRefused():
                refusal = event.refusal
                self.note(
                    "update refused", run=run, site=refusal.site, why=str(refusal)
                )
            case SiteLeft():
                self.note("left", run=run, site=event.site, why=event.reason)
            case Published() if event.round_number == 0:
                self.note("begun", run=run, blake3=event.blake3)
            case RoundPlayed():
                record = event.record
                self.note(
                    "round",
                    run=run,
                    round=record.round,
                    sites=sorted(record.sites),
                    num_examples=record.num_examples,
                    blake3=record.blake3,
                )
                self._log.sign()
            case RunEnded():
                result = event.result
                self.note(
                    "ended",
                    run=run,
                    rounds=result.rounds,
                    blake3=result.blake3,
                    error=result.error,
                )
                self._log.sign()
            case _:
                pass
