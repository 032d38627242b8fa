"""The rounds of a run, one after the other: updates come in, global models go out."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import final

from flare_core._model import Layout, ModelState
from flare_core._plan import Plan
from flare_core._round_policy import RoundPolicy
from flare_core.application._announcing import Announcing
from flare_core.application._cohorts import Cohorts
from flare_core.application._course import Course
from flare_core.application._deadline import Deadline
from flare_core.application._distribution import Send
from flare_core.application._events import (
    Observer,
    RoundRecord,
    SiteReport,
    Updated,
    UpdateIgnored,
)
from flare_core.application._folding import Folding
from flare_core.application._intake import Intake
from flare_core.application._ledger import Ledger
from flare_core.application._lobby import Lobby
from flare_core.application._on_record import OnRecord
from flare_core.application._opening import Initial
from flare_core.application._publication import Publication
from flare_core.application._receipts import Receipts
from flare_core.application._restoring import Restoring
from flare_core.application._round_report import RoundReport, contribution
from flare_core.application._run_store import Kept
from flare_core.application._swarm import Swarm
from flare_core.application._waiting import Waiting, ahead
from flare_core.application._worker import Worker
from flare_core.communication import INITIAL, Aborted, Chunk, Parcel, ToServer
from flare_core.federation import Round


@final
class Rounds:
    """Plays the rounds, from the initial weights on.

    Args:
        plan: What is played.
        course: Says when no round follows.
        lobby: Who takes part.
        intake: Receives the updates.
        folds: Returns what makes one model of updates of a layout.
        worker: Works on models meanwhile.
        ledger: Keeps what must outlive this server.
        send: How to answer a site.
        observer: Told of everything that happens.
        recorded: Told of each global model that is on record: its number and hash.
        failed: Told why the run cannot go on, and of the site that is to blame.
        patient: Whether to wait for sites that are gone; else the run fails.

    Attributes:
        announcing: Tells sites of the global model.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        course: Course,
        lobby: Lobby,
        intake: Intake,
        folds: Callable[[Layout], Folding | Swarm],
        worker: Worker,
        ledger: Ledger,
        send: Send,
        observer: Observer,
        recorded: Callable[[int, str], None],
        failed: Callable[[str, str], None],
        patient: bool,
    ) -> None:
        self._plan = plan
        self._least = plan.selection.least
        self._lobby = lobby
        self._intake = intake
        self._folds = folds
        self._worker = worker
        self._ledger = ledger
        self._send = send
        self._observer = observer
        self._on_record = OnRecord(
            worker=worker, ledger=ledger, observer=observer, then=recorded
        )
        self._course = course
        self._failed = failed
        self._patient = patient
        self._round: Round | None = None
        self._report = RoundReport(0)
        self._model: Publication | None = None
        self._folding: Folding | Swarm | None = None
        self._cohorts = Cohorts(plan, lobby)
        self._restoring = Restoring(
            lobby=lobby,
            intake=intake,
            worker=worker,
            send=send,
            count=self._restored,
            go_on=self._go_on,
        )
        self._receipts = Receipts(ledger, send)
        self.announcing = Announcing(send)
        self._waiting = Waiting(plan, lobby, send, observer)
        self._deadline = Deadline(RoundPolicy())

    @property
    def begun(self) -> bool:
        """Whether there are weights to start from."""
        return self._folding is not None

    @property
    def number(self) -> int:
        """The round being played, or the number of rounds played."""
        return INITIAL if self._round is None else self._round.number

    @property
    def weights(self) -> Mapping[str, int]:
        """Examples in the last update of each site that counted."""
        return self._cohorts.sizes

    @property
    def finished(self) -> bool:
        """Whether the final model is out."""
        return self.number == self._course.last

    @property
    def closing(self) -> bool:
        """Whether a round is over, and its model being made."""
        return self._receipts.closing is not None

    @property
    def due(self) -> float:
        """When to call `tick`, on the monotonic clock."""
        return math.inf if self.closing else self._deadline.due

    def begin(self, initial: Initial) -> None:
        """Start from the weights of a site."""
        self._folding = self._folds(initial.layout)
        self._folding.first(initial.path, initial.stream, self._start)

    def _start(self, first: Publication | str) -> None:
        if isinstance(first, str):
            self._failed(first, "")
        else:
            self._publish(first, 0, None)

    def resume(self, kept: Kept, layout: Layout) -> None:
        """Go on in the round that another server was in.

        Args:
            kept: What it kept.
            layout: Of the global model.

        Raises:
            ConfigurationError: If the file of the global model is damaged.
        """
        number = kept.number
        assert number is not None  # noqa: S101 - else there is no round
        self._course.resume(kept.played, kept.hashes)
        self.announcing.trains(self._lobby.present)
        self._folding = folding = self._folds(layout)
        model = folding.resume(number, kept.streams[number], kept.memory)
        current = self._open(model, number, kept.cohort)
        for earlier, published in folding.earlier(number, kept.streams):
            self._intake.remember(earlier, published)
        self._cohorts.learn(kept.sizes)
        self._restoring.begin(current, kept.updates)
        self._on_record.put(model, current, kept.record, final=self.finished)
        self._look_whether_it_waits(current)
        self._go_on(current)

    def hold(self, act: Callable[[], object]) -> None:
        """Do something once the next round is open; while one is being closed."""
        self._receipts.hold(act)

    def announce(self, site: str) -> None:
        """Tell a site of the global model, unless its update is in already."""
        current = self._round
        if current is None:
            return
        if self.finished or (current.awaits(site) and not self.closing):
            self.announcing.tell(site)

    def takes(self, site: str, message: ToServer | Chunk) -> bool:
        """Take a message, if it is about how updates are combined."""
        return self._folding is not None and self._folding.takes(site, message)

    def stale(self, site: str, round_number: int, *, repeated: bool) -> None:
        """Answer an offer that nobody waits for.

        Args:
            site: Whose.
            round_number: The round that it answers.
            repeated: Whether it is one that has arrived before.
        """
        current = self._round
        if not repeated:
            self._observer(UpdateIgnored(site, round_number))
        if current is None:
            return
        if round_number < current.number:  # it has not heard that the round is over
            if self.finished or site in current.cohort:
                self.announcing.tell(site)
        elif round_number > current.number:
            reason = ahead(site, round_number, current.number)
            self._send(site, Aborted(reason=reason))

    def invite(self, site: str) -> int:
        """Let a site take part that comes late, or again.

        Returns:
            The first round that it takes part in.
        """
        current = self._round
        if current is None:
            return self._cohorts.since(site, 0)
        if self.finished:
            return current.number
        if self.closing:
            return self._cohorts.since(site, current.number + 1)
        if not self._cohorts.takes(site, current, paused=bool(self._waiting.reason)):
            return current.number + 1
        self._let_in(site, current)
        self._look_whether_it_waits(current)
        return current.number

    def lose(self, site: str, why: str) -> None:
        """Go on without a site, if the round can."""
        current = self._round
        if current is None or self.finished:
            return
        current.lose(site)
        self._folding_of_it.lose(site)
        self.announcing.waits(site)
        self._pass_on(current)
        last = current.number + 1 == self._plan.rounds
        none_follows = not last and len(self._lobby.present) < self._least
        if not self._patient and (current.short_by or none_follows):
            self._failed(self._waiting.in_vain(current, why), site)
            return
        self._look_whether_it_waits(current)
        self._go_on(current)

    def _let_in(self, site: str, current: Round) -> None:
        current.invite(site)
        if current.awaits(site):  # else it is in, and nothing may change it
            self._intake.expect(site)

    def _pass_on(self, current: Round) -> None:
        """Give the turn of a site that is gone to another, if the plan has it so."""
        site = self._cohorts.instead(current)
        if site is not None:
            self._let_in(site, current)
            self._ledger.write(lambda store: store.invited(site, current.number))
            self.announce(site)

    def admit(self, parcel: Parcel, weights: ModelState) -> None:
        """Let an update count, and fold what is next in the cohort's order."""
        staleness = self._intake.staleness(parcel.offer)
        parcel = self._intake.counted(parcel)
        site, offer = parcel.site, parcel.offer
        current, number = self._round, offer.round_number
        if current is None or not current.receive(site, number, offer.num_examples):
            self.stale(site, number, repeated=False)
            return
        if offer.spooled:
            self.announcing.shared(site)
        report = self._report.received(site, offer, staleness)
        self._keep(parcel, weights)
        self._receipts.commit(parcel, report)
        self._observer(Updated(site, current.number, report))
        self._go_on(current)

    def _keep(self, parcel: Parcel, weights: ModelState) -> None:
        """Take an update that counts."""
        self._folding_of_it.keep(weights, contribution(parcel.site, parcel.offer))
        self._ledger.keep(
            lambda archive: archive.take(parcel.site, parcel.path, weights)
        )

    @property
    def _folding_of_it(self) -> Folding | Swarm:
        assert self._folding is not None  # noqa: S101 - there is a model
        return self._folding

    def _restored(
        self, parcel: Parcel, weights: ModelState, report: SiteReport
    ) -> None:
        """An update was committed before this server was started, and is good."""
        self._keep(parcel, weights)
        self._report.restored(parcel.site, report)

    def _go_on(self, current: Round) -> None:
        """Fold what is ready, and end the round if that was all, or it is time."""
        if self.closing:
            return
        if current.num_updates >= self._least:
            self._deadline.quorum()
            for site in current.missing if self._deadline.passed else ():
                current.lose(site)
        self._folding_of_it.advance(current)
        if current.complete:
            folding = self._folding_of_it
            self._receipts.closing = None if folding.defers else current.number
            assert self._model is not None  # noqa: S101 - there is a round
            folding.finish(current, self._model, partial(self._played, current))

    def tick(self) -> None:
        """End the round that is due, or say what it waits for; see `due`."""
        self._deadline.strike()
        if self._round is not None:
            self._look_whether_it_waits(self._round)
            self._go_on(self._round)

    def _played(self, current: Round, outcome: Publication | str) -> None:
        """A round is over."""
        if isinstance(outcome, str):
            self._failed(f"round {current.number}: {outcome}", "")
            return
        number, weights = current.number, current.num_examples
        self._receipts.closing = number
        self._cohorts.learn(weights)
        record = self._report.record(current.cohort, weights, outcome)
        self._course.played(record)
        self._lobby.counted |= dict.fromkeys(weights, number)
        self._ledger.keep(
            lambda archive: archive.keep_updates(number, weights),
            partial(self._publish, outcome, number + 1, record),
        )

    def _publish(
        self, model: Publication, number: int, record: RoundRecord | None
    ) -> None:
        """Keep a model, and open the round that starts from it."""
        cohort = self._cohorts.choose(number)
        self._course.made(model, number)

        def opened() -> None:
            before = self._model
            current = self._open(model, number, self._cohorts.opened())
            for site in self._lobby.gone:
                self._restoring.do_without(site, current)
            self._receipts.opened()
            for site in self.announcing.waiting(self._lobby.present):
                if not self._intake.sends(site):
                    self.announce(site)
            self._on_record.put(model, current, record, final=self.finished)
            self._course.tidy()
            if before is not None:
                self._worker.do_aside(before.discard_beside)
            if self.finished:
                self._worker.do_aside(model.sync)
            self._look_whether_it_waits(current)
            self._receipts.release()

        self._ledger.write(
            lambda store: store.published(number, model, record, cohort), opened
        )

    def _open(self, model: Publication, number: int, invited: set[str]) -> Round:
        """Wait for the updates of a round, and return it."""
        self._model = model
        self._course.opened(model.model.path)
        self._report = RoundReport(number)
        self._folding_of_it.begin(model.weights)
        self._receipts.closing = None
        current = Round(number, invited, quorum=self._least, key=self._lobby.place)
        self._round = current
        self._deadline = Deadline(RoundPolicy() if self.finished else self._plan.round)
        cohort = () if self.finished else current.cohort
        for outdated in self._intake.begin(number, cohort, model.weights.layout, model):
            self._worker.do_aside(outdated.discard)
        self.announcing.open(
            model,
            number,
            final=self.finished,
            counted=self._lobby.counted,
            report=self._report,
        )
        return current

    def _look_whether_it_waits(self, current: Round) -> None:
        """Say what the run waits for, or give it up where nobody comes back."""
        if self.finished:
            self._waiting.over(current.number, self._course.reason)
            return
        self._pass_on(current)
        if current.short_by and not self._patient:
            why = f"sites are gone: {self._lobby.gone_in_words(current.cohort)}"
            gone = [site for site in current.cohort if site in self._lobby.gone]
            self._failed(self._waiting.in_vain(current, why), min(gone, default=""))
        else:
            self._waiting.look(current, overdue=self._deadline.passed)
