"""One run as the server sees it: gathering, opening, playing, parting."""

from collections.abc import Mapping
from functools import partial
from typing import final

import msgspec

from flare_core._errors import Refusal
from flare_core._model import Metrics, ModelState
from flare_core._plugins import plugin
from flare_core.application._aggregator import Aggregator
from flare_core.application._distribution import Distribution, Send
from flare_core.application._events import (
    Observer,
    Published,
    Result,
    RoundPlayed,
    RoundRecord,
    SiteLeft,
    Updated,
    UpdateIgnored,
)
from flare_core.application._guests import Guests, in_words
from flare_core.application._intake import Intake
from flare_core.application._lobby import Lobby
from flare_core.application._opening import Initial, Opening
from flare_core.application._publication import Publication, blake3_of, sync
from flare_core.application._round_report import RoundReport, parting
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    INITIAL,
    SHORT_BYTES,
    Aborted,
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
from flare_core.federation import Round, Strategy


@final
class Run:
    """Answers the sites' messages, and is over when all have left or it is aborted.

    Args:
        welcome: What a site is told when it says hello; its plan is played.
        spool: For what is underway; its folder must exist.
        share: Whether sites on this machine may put their updates there themselves.
        send: How to answer a site.
        worker: Works on models meanwhile.
        observer: Told of everything that happens.
        preflight: Whether to compare the sites only.
        patient: Whether a site that leaves or does not fit before round 0 may be
            replaced; else it ends the run.

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
        observer: Observer,
        preflight: bool,
        patient: bool,
    ) -> None:
        plan = self._plan = welcome.plan
        self._guests = Guests(welcome, send, observer)
        self._patient = patient
        self._spool = spool
        self._send = send
        self._worker = worker
        self._observer = observer
        self._preflight = preflight
        self._strategy: Strategy = plugin("flare_core.strategies", plan.strategy.name)(
            plan.strategy
        )
        self.lobby = Lobby(plan)
        self._intake = Intake(plan.encoding.up, spool, share=share)
        self._opening = Opening(self.lobby, self._intake, send)
        self._round: Round | None = None
        self._report = RoundReport(0)
        self._model: Publication | None = None
        self._distribution: Distribution | None = None
        self._aggregator: Aggregator | None = None
        self._updates: dict[str, ModelState] = {}
        self._complete = False
        self._weights: Mapping[str, int] = {}
        self._final_metrics: dict[str, Metrics] = {}
        self.result = Result()
        self.over = False

    def welcome(self, site: str) -> None:
        """Send the plan to a site."""
        self._guests.greet(site)

    def receive(self, site: str, message: ToServer | Chunk) -> None:
        """Take a message of a site that has said hello."""
        match message:
            case Chunk():
                self._reject(self._intake.take(site, message))
            case Want():
                self._serve(site, message)
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
        present = self.lobby.present
        counted = self._round is not None or site in self.lobby.joined
        if self.over or (counted and site not in present):
            return
        present.discard(site)
        self._intake.forget(site)
        self._observer(SiteLeft(site, reason, self._final_metrics.get(site, {})))
        if self._round is None:
            self._left_early(site, f"site {site!r} left before round 0: {reason}")
        elif self._finished:
            self._end_when_all_left()
        else:
            verb = "failed" if failed else "left"
            self._go_on_without(self._round, site, f"site {site!r} {verb}: {reason}")

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

    @property
    def _finished(self) -> bool:
        """Whether the final model is out."""
        return self._number == self._plan.rounds

    @property
    def _number(self) -> int:
        """The round being played, or the number of rounds played."""
        return INITIAL if self._round is None else self._round.number

    def _join(self, site: str, join: Join) -> None:
        if site in self.lobby.joined:
            self._say_again(site)
            return
        if reason := self.lobby.too_late(site):  # it said hello before the others
            self._send(site, Aborted(reason=reason))
            return
        self.lobby.enter(site, join)
        self._observer(self.lobby.event(site))
        if self.lobby.full:
            self._compare()

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
        if self._distribution is not None:
            self._distribution.announce(site)
        else:
            self._opening.repeat(site)

    def _compare(self) -> None:
        """All have joined: refuse those that do not fit, or ask one to begin."""
        refusals = self.lobby.refusals()
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
            self._begin_when_all_is_there()

    def _offered(self, site: str, offer: Offer) -> None:
        if self._intake.has(site, offer):
            self._send(site, Committed(stream=offer.stream))
            if self._distribution is not None and self._number > offer.round_number:
                self._distribution.announce(site)
        elif not self._intake.awaits(site, offer):
            self._observer(UpdateIgnored(site, offer.round_number))
        elif offer.spooled:
            self._arrived(self._intake.spooled(site, offer), offer.spooled)
        else:
            self._reject(self._intake.open(site, offer))

    def _commit(self, site: str, commit: Commit) -> None:
        parcel = self._intake.commit(site, commit)
        if parcel is not None:
            self._arrived(parcel, commit.digest)

    def _arrived(self, parcel: Parcel | Refusal, digest: bytes) -> None:
        """An update has arrived whole, or never will: have it looked at."""
        if isinstance(parcel, Refusal):
            self._reject(parcel)
            return
        self._send(parcel.site, Committed(stream=parcel.offer.stream))
        self._worker.do(
            self._intake.inspection(parcel), partial(self._inspected, parcel, digest)
        )

    def _inspected(
        self, parcel: Parcel, stream: bytes, weights: ModelState | Refusal
    ) -> None:
        """An update was looked at: let it count, or refuse it."""
        if self.over:
            return
        if isinstance(weights, Refusal):
            self._reject(weights)
        elif parcel.offer.round_number == INITIAL:
            self._opening.arrived(Initial(parcel, stream, weights.layout))
            self._begin_when_all_is_there()
        else:
            self._admit(parcel, weights)

    def _begin_when_all_is_there(self) -> None:
        """Start from the weights of the site that was asked, once they are here."""
        initial = self._opening.advance()
        if initial is None:
            return
        path, offer = initial.parcel.path, initial.parcel.offer
        assert path is not None  # noqa: S101 - only a later one may be short
        self._worker.small = offer.num_bytes <= SHORT_BYTES
        self._aggregator = Aggregator(
            self._plan, initial.layout, self._strategy, self._spool, self._worker.each
        )
        self._open_round(self._aggregator.first(path, initial.stream), 0)

    def _admit(self, parcel: Parcel, weights: ModelState) -> None:
        """Let an update count, and fold what is next in the cohort's order."""
        site, offer = parcel.site, parcel.offer
        current, number = self._round, offer.round_number
        if current is None or not current.receive(site, number, offer.num_examples):
            self._observer(UpdateIgnored(site, number))
            return
        if offer.spooled and self._distribution is not None:
            self._distribution.shared(site)
        report = self._report.received(site, offer)
        self._observer(Updated(site, current.number, report))
        self._updates[site] = weights
        self._go_on(current)

    def _go_on(self, current: Round) -> None:
        """Fold what is due, and end the round if that was all."""
        assert self._aggregator is not None  # noqa: S101 - there is a round
        assert self._model is not None  # noqa: S101
        for site in current.due():
            weights, num_examples = self._updates.pop(site), current.num_examples[site]
            self._worker.do(partial(self._aggregator.add, weights, num_examples))
        if current.complete and not self._complete:
            self._complete = True
            self._worker.do(
                partial(self._aggregator.finish, self._model, current.number + 1),
                partial(self._played, current),
            )

    def _played(self, current: Round, outcome: Publication | Refusal) -> None:
        """A round is over."""
        if self.over:
            return
        if isinstance(outcome, Refusal):
            self.abort(f"round {current.number}: {outcome}")
            return
        self._weights = current.num_examples
        record = self._report.record(self._weights, error_down=outcome.error)
        self._open_round(outcome, current.number + 1, record)

    def _open_round(
        self, model: Publication, number: int, record: RoundRecord | None = None
    ) -> None:
        """Tell all of the model that came out of the round on record."""
        before, self._model = self._model, model
        self._report = RoundReport(number)
        self._updates.clear()
        self._complete = False
        least = self._plan.selection.least
        self._round = Round(number, self.lobby.present, quorum=least)
        cohort = () if self._finished else self._round.cohort
        self._intake.begin(number, cohort, model.weights.layout, model)
        self._distribution = Distribution(
            model, number, final=self._finished, send=self._send, report=self._report
        )
        for site in sorted(self.lobby.present):
            self._distribution.announce(site)
        self._worker.do(
            partial(blake3_of, model.model.path),
            partial(self._record, model, number, record),
        )
        if self._finished:
            self._worker.do_aside(partial(sync, model.model.path))
        if before is not None:
            self._worker.do_aside(before.discard)

    def _record(
        self, model: Publication, number: int, record: RoundRecord | None, blake3: str
    ) -> None:
        """A global model is out, and the round that it came out of is over."""
        if self.over:
            return
        self.result = Result(rounds=number, blake3=blake3)
        final = number == self._plan.rounds
        self._observer(
            Published(number, model.model.path, model.weights, blake3, final)
        )
        if record is not None:
            played = msgspec.structs.replace(record, blake3=blake3)
            self._observer(RoundPlayed(played))
        self._end_when_all_left()

    def _serve(self, site: str, want: Want) -> None:
        """Send what a site asks for of the global model."""
        if self._distribution is not None and site in self.lobby.present:
            self._distribution.serve(site, want)

    def _reject(self, refusal: Refusal | None) -> None:
        """Refuse what a site sent, if it is wrong, and go on without the site."""
        if refusal is None:
            return
        site = refusal.site
        self._guests.refuse(refusal)
        self._intake.forget(site)
        if self._round is None:
            self._left_early(site, str(refusal))
        else:
            self.lobby.present.discard(site)
            self._go_on_without(self._round, site, str(refusal))

    def _go_on_without(self, current: Round, site: str, reason: str) -> None:
        """A site is gone in the middle of a round: go on or give up."""
        current.lose(site)
        least = self._plan.selection.least
        last = current.number + 1 == self._plan.rounds
        if current.hopeless or (not last and len(self.lobby.present) < least):
            reason = (
                f"round {current.number}: {reason}. The quorum of {least} cannot be "
                "reached; set selection.quorum in the plan to go on without it"
            )
            self.abort(reason, failed_site=site)
        else:
            self._go_on(current)

    def _leave(self, site: str, message: Leave) -> None:
        if site in self.lobby.present:
            self._final_metrics[site] = message.metrics
        self._send(site, Bye())
        self.site_left(site, in_words(message.reason), failed=message.failed)

    def _end_when_all_left(self) -> None:
        """End, once the final model is on record and nobody needs it any more."""
        if self.lobby.present or self.result.rounds != self._plan.rounds:
            return
        self.result = parting(self.result, self._final_metrics, self._weights)
        self.over = True
