"""What goes into the audit log of a server, in its words."""

import logging
from collections.abc import Sequence
from typing import TypeAlias, final

from flare_core.application import (
    AuditLog,
    Event,
    Published,
    RoundPlayed,
    RunEnded,
    RunPaused,
    RunResumed,
    RunTakenUp,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    UpdateIgnored,
)
from flare_core.communication import TurnedAway
from flare_core.management._deployment._quiet import Quiet

_log = logging.getLogger(__name__)
Fact: TypeAlias = str | float | Sequence[str]
_MOST_KINDS = 1000
_LONGEST_FACT = 2000


@final
class Trail:
    """Writes down what happens on a server; for its thread.

    Args:
        log: Where to.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._quiet: dict[tuple[str, str], Quiet] = {}

    def note(self, event: str, *, run: str = "", site: str = "", **facts: Fact) -> None:
        """Append a line, and say it."""
        self._log.note(event, run=run, site=site, **facts)
        said = [f"{name} {fact!r}" for name, fact in facts.items() if fact]
        who = [f"run {run}" if run else "", site, event]
        _log.info("%s", " ".join(filter(None, [*who, *said])))

    def sign(self) -> None:
        """Sign all lines so far, and how much more of the same there was."""
        for (what, user), quiet in self._quiet.items():
            if times := quiet.taken():
                self._log.note("repeated", what=what, user=user, times=times)
        self._log.sign()

    def refused(self, what: str, *, user: str = "", **facts: str) -> None:
        """Write down that something was refused; of the same again, how often.

        A stranger cannot fill the disk: of one kind, and somebody, a few lines a minute
        are written, each other than the rest, and what is more is counted.
        """
        short = {name: fact[:_LONGEST_FACT] for name, fact in facts.items()}
        quiet = self._quiet_of(what, user)
        if quiet.may_say(tuple(sorted(short.items()))):
            more = quiet.taken()
            self.note("refused", what=what, user=user, more_before=more, **short)

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
                self.seldom("joined", run, event.site, base=event.base)
            case SiteRefused():
                refusal = event.refusal
                self.seldom("update refused", run, refusal.site, why=str(refusal))
            case UpdateIgnored():
                self.refused(
                    "update that nobody waits for",
                    user=event.site,
                    run=run,
                    round=str(event.round_number),
                )
            case SiteLeft():
                self.seldom("left", run, event.site, why=event.reason)
            case RunPaused():
                self.seldom("paused", run, "", why=event.reason)
            case RunResumed() | RunTakenUp():
                self.seldom("resumed", run, "", round=event.round_number)
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
                self.sign()
            case RunEnded():
                result = event.result
                self.note(
                    "ended",
                    run=run,
                    rounds=result.rounds,
                    blake3=result.blake3,
                    error=result.error,
                )
                self.sign()
            case _:
                pass

    def seldom(self, event: str, run: str, site: str, **facts: str | int) -> None:
        """Write down what a site makes happen, unless it does so over and over."""
        if self._quiet_of(f"{event} in {run}", site).may_say(object()):
            short = {
                name: fact[:_LONGEST_FACT] if isinstance(fact, str) else fact
                for name, fact in facts.items()
            }
            self.note(event, run=run, site=site, **short)

    def _quiet_of(self, what: str, user: str) -> Quiet:
        quiet = self._quiet.pop((what, user), None) or Quiet()
        while len(self._quiet) >= _MOST_KINDS:
            del self._quiet[next(iter(self._quiet))]
        self._quiet[what, user] = quiet  # the newest is the last one
        return quiet
