"""One run as the server sees it: gathering, opening, playing, parting."""

from functools import partial
from typing import final

import msgspec

from flare_core._errors import Refusal
from flare_core._model import Metrics, ModelState
from flare_core.application._above import Above
from flare_core.application._course import Course
from flare_core.application._distribution import Send
from flare_core.application._events import (
    Observer,
    Result,
    RunTakenUp,
    SiteLeft,
    UpdateIgnored,
)
from flare_core.application._folding import folding
from flare_core.application._guests import Guests, in_words
from flare_core.application._intake import Intake
from flare_core.application._ledger import Ledger
from flare_core.application._lobby import Lobby
from flare_core.application._opening import Initial, Opening
from flare_core.application._round_report import parting
from flare_core.application._rounds import Rounds
from flare_core.application._run_store import Kept
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    INITIAL,
    Again,
    Bye,
    Checked,
    Chunk,
    Commit,
    Committed,
    Join,
    Leave,
    Offer,
    Parcel,
    ToServer,
    Want,
    Welcome,
)
from flare_core.federation import chosen, lora_rule


@final
class Run:
    """Answers the sites' messages, and is over when all have left or it is aborted.

    Args:
        welcome: What a site is told when it says hello; its plan is played.
        spool: For what is underway; its folder must exist.
        share: Whether sites on this machine may put their updates there themselves.
        send: How to answer a site.
        worker: Works on models meanwhile.
        ledger: Keeps what must outlive this server.
        observer: Told of everything that happens.
        preflight: Whether to compare the sites only.
        patient: Whether to wait for sites that are gone; else the run ends where it
            cannot do without one.
        above: The server above, if this is that of a region.

    Attributes:
        lobby: Who takes part.
        result: How it went so far.
        over: Whether nothing more happens.
    """

    def __init__(
        self,
        welcome: Welcome,
        *,
        spool: Spool,
        share: bool,
        send: Send,
        worker: Worker,
        ledger: Ledger,
        observer: Observer,
        preflight: bool,
        patient: bool,
        above: Above | None = None,
    ) -> None:
        plan = welcome.plan
        self._guests = Guests(welcome, send, observer)
        self._patient = patient
        self._send = send
        self._worker = worker
        self._ledger = ledger
        self._observer = observer
        self._preflight = preflight
        self.lobby = Lobby(plan)
        strategy, _ = chosen(plan)
        lora_rule(plan, strategy)  # raises before a site has come
        self._intake = Intake(plan, strategy, spool, share=share)
        self._opening = Opening(self.lobby, self._intake, send)
        self._course = Course(plan, spool, worker, observer)
        self._rounds = Rounds(
            plan,
            course=self._course,
            lobby=self.lobby,
            intake=self._intake,
            folds=partial(
                folding,
                plan,
                spool,
                worker,
                above=above,
                lobby=self.lobby,
                send=send,
                reject=self._reject,
            ),
            worker=worker,
            ledger=ledger,
            send=send,
            observer=observer,
            recorded=self._recorded,
            failed=self._failed,
            patient=patient,
        )
        self._final_metrics: dict[str, Metrics] = {}
        self.result = Result()
        self.over = False

    @property
    def number(self) -> int:
        """The round that is played, or the number of rounds played."""
        return self._rounds.number

    @property
    def due(self) -> float:
        """When to call `tick`, on the monotonic clock."""
        return self._rounds.due

    def tick(self) -> None:
        """Do what is due."""
        self._rounds.tick()

    def resume(self, kept: Kept) -> None:
        """Go on where another server was.

        Raises:
            ConfigurationError: If what it kept is damaged.
        """
        for site, standing in kept.sites.items():
            self.lobby.enter(site, standing.join)
            self.lobby.refusals[site] = standing.refusals
            if standing.metrics is not None:
                self._final_metrics[site] = standing.metrics
            if standing.present:
                self._observer(self.lobby.event(site))
            else:
                self.lobby.lose(site, "it left before the server was started again")
        if kept.number is None:
            self._opening.advance()
            return
        self.lobby.counted |= kept.counted
        self.result = Result(rounds=max(0, kept.number - 1), blake3=kept.blake3)
        self._observer(RunTakenUp(kept.number, kept.records))
        self._rounds.resume(kept, self.lobby.joined[self.lobby.opener].layout)

    def welcome(self, site: str, *, again: bool = False) -> None:
        """Send the plan to a site.

        Args:
            site: Which.
            again: Whether it is the same process that was here before.
        """
        if not again:
            self._guests.forgive(site)
        refused = self._guests.greet(site)
        if again and not refused and self.lobby.may_come_back(site):
            self._come_back(site, self.lobby.joined[site])

    def receive(self, site: str, message: ToServer | Chunk) -> None:
        """Take a message of a site that has said hello."""
        if self._rounds.takes(site, message):
            return
        match message:
            case Chunk():
                self._reject(self._intake.take(site, message))
            case Want() if site in self.lobby.present:
                self._rounds.announcing.serve(site, message)
            case Offer():
                self._offered(site, message)
            case Commit():
                self._commit(site, message)
            case Join():
                self._join(site, message)
            case Leave():
                self._leave(site, message)
            case _:  # the server's own business
                pass
        for other, want in self._intake.wants():
            self._send(other, want)

    def site_left(self, site: str, reason: str, *, failed: bool = False) -> None:
        """Note that a site has gone, and whether by a failure."""
        counted = self._rounds.begun or site in self.lobby.joined
        if self.over or (counted and site not in self.lobby.present):
            return
        metrics = self._final_metrics.get(site)
        self._observer(SiteLeft(site, reason, metrics or {}))
        self._intake.forget(site)
        if not self._rounds.begun:
            self._left_early(site, f"site {site!r} left before round 0: {reason}")
            return
        self.lobby.lose(site, reason or "it has left")
        self._ledger.write(lambda store: store.left(site, metrics, refused=False))
        verb = "failed" if failed else "left"
        self._rounds.lose(site, f"site {site!r} {verb}: {reason}")
        self._end_when_all_left()

    def abort(self, reason: str, *, failed_site: str = "") -> None:
        """End the run for all."""
        if self.over:
            return
        self._guests.dismiss(reason)
        replace = msgspec.structs.replace
        self.result = replace(self.result, error=reason, failed_site=failed_site)
        self.over = True

    def close(self) -> None:
        """Drop what is underway."""
        self._intake.close()

    def _failed(self, reason: str, site: str) -> None:
        self.abort(reason, failed_site=site)

    def _join(self, site: str, join: Join) -> None:
        known = site in self.lobby.joined
        if site in self.lobby.present and join == self.lobby.joined[site]:
            self._say_again(site)
        elif reason := self.lobby.unwanted(site):  # it said hello before the others
            self._guests.turn_away(site, reason)
        elif self._rounds.begun:
            self._join_later(site, join)
        elif known:  # the same site, with another model
            self.lobby.leave(site)
            self._opening.forget(site)
            self._enter(site, join)
        else:
            self._enter(site, join)

    def _enter(self, site: str, join: Join) -> None:
        self.lobby.enter(site, join)
        self._observer(self.lobby.event(site))
        if self.lobby.full:
            self._compare()

    def _join_later(self, site: str, join: Join) -> None:
        """Let a site in that is new, or whose script was started again."""
        refusal = self.lobby.misfit(site, join)
        if refusal is not None:
            self._reject(refusal)
            return
        if site not in self.lobby.present:
            self._come_back(site, join)
        self._rounds.announce(site)

    def _come_back(self, site: str, join: Join) -> None:
        known = site in self.lobby.joined
        self.lobby.enter(site, join)
        self._final_metrics.pop(site, None)
        since = self._rounds.invite(site)
        if known:
            self._ledger.write(lambda store: store.came_back(site, since=since))
        else:
            self._ledger.write(lambda store: store.entered(site, join, since=since))
        self._observer(self.lobby.event(site))

    def _left_early(self, site: str, reason: str) -> None:
        """A site is gone before round 0: wait for another one, or end the run."""
        if not self._patient:
            self.abort(reason, failed_site=site)
            return
        self.lobby.leave(site)
        self._guests.forgive(site)
        self._opening.forget(site)

    def _say_again(self, site: str) -> None:
        """Answer a site that lost its connection, and perhaps an answer with it."""
        self._rounds.announcing.waits(site)
        if self._rounds.begun:
            self._rounds.announce(site)
        else:
            self._opening.repeat(site)

    def _compare(self) -> None:
        """All have joined: refuse those that do not fit, or ask one to begin."""
        refusals = self.lobby.misfits()
        for refusal in refusals:
            self._guests.refuse(refusal)
        if refusals:
            for refusal in refusals:
                self._left_early(refusal.site, str(refusal))
        elif self._preflight:
            for site in sorted(self.lobby.present):
                self._send(site, Checked())
            self.over = True
        else:
            joined = dict(self.lobby.joined)
            self._ledger.write(
                lambda store: store.gathered(joined), self._begin_when_all_is_there
            )

    def _offered(self, site: str, offer: Offer) -> None:
        self._rounds.announcing.waits(site)
        if self._intake.awaits(site, offer):
            if offer.spooled:
                self._arrived(self._intake.spooled(site, offer), offer.spooled)
            else:
                self._reject(self._intake.open(site, offer))
        elif site in self.lobby.present:
            repeated = self._intake.has(site, offer)
            self._rounds.stale(site, offer.round_number, repeated=repeated)
        else:
            self._observer(UpdateIgnored(site, offer.round_number))
            if site not in self.lobby.joined:
                self._guests.lost(site)

    def _commit(self, site: str, commit: Commit) -> None:
        parcel = self._intake.commit(site, commit)
        if parcel is not None:
            self._arrived(parcel, commit.digest)

    def _arrived(self, parcel: Parcel | Refusal, digest: bytes) -> None:
        """An update has arrived whole, or never will: have it looked at."""
        if isinstance(parcel, Refusal):
            self._reject(parcel)
            return
        self._worker.do(
            self._intake.inspection(parcel),
            partial(self._inspected, parcel, digest, self.number),
        )

    def _inspected(
        self, parcel: Parcel, stream: bytes, number: int, weights: ModelState | Refusal
    ) -> None:
        """An update was looked at, in a round: let it count, or refuse it."""
        if self._rounds.closing and self._intake.may_wait(parcel.offer):
            again = partial(self._inspected, parcel, stream, number, weights)
            self._rounds.hold(again)
            return
        if self._intake.looked(parcel.site):
            self._send(parcel.site, Again())
        if isinstance(weights, Refusal):
            self._reject(weights)
        elif number != self.number and self._intake.is_late(parcel.offer):
            self._arrived(parcel.plain, stream)  # it was looked at as one in time
        elif parcel.offer.round_number == INITIAL:
            self._send(parcel.site, Committed(stream=parcel.offer.stream))
            self._opening.arrived(Initial(parcel, stream, weights.layout))
            self._begin_when_all_is_there()
        else:
            self._rounds.admit(parcel, weights)

    def _begin_when_all_is_there(self) -> None:
        """Start from the weights of the site that was asked, once they are here."""
        if not self._rounds.begun and (initial := self._opening.advance()):
            self._rounds.begin(initial)

    def _recorded(self, number: int, blake3: str) -> None:
        self._course.hashed(number, blake3)
        self.result = Result(rounds=number, blake3=blake3)
        self._end_when_all_left()

    def _reject(self, refusal: Refusal | None) -> None:
        """Refuse what a site sent, if it is wrong, and go on without the site."""
        if refusal is None:
            return
        site = refusal.site
        self._guests.refuse(refusal)
        self._intake.forget(site)
        if not self._rounds.begun:
            self._left_early(site, str(refusal))
            return
        self.lobby.refuse(refusal)
        self._ledger.write(lambda store: store.left(site, None, refused=True))
        self._rounds.lose(site, str(refusal))

    def _leave(self, site: str, message: Leave) -> None:
        if site in self.lobby.present and self._rounds.finished:
            self._final_metrics[site] = message.metrics
        self._send(site, Bye())
        self.site_left(site, in_words(message.reason), failed=message.failed)

    def _end_when_all_left(self) -> None:
        """End, once the final model is on record and nobody needs it any more."""
        recorded = self._rounds.finished and self.result.rounds == self._rounds.number
        if self.lobby.present or not recorded:
            return
        result = parting(self.result, self._final_metrics, self._rounds.weights)
        self._course.end(result, self._end)

    def _end(self, result: Result) -> None:
        self.result, self.over = result, True
