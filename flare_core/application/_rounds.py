"""The rounds of a run, one after the other: updates come in, global models go out."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import final

import msgspec

from flare_core._errors import ConfigurationError, Refusal
from flare_core._model import Layout, ModelState
from flare_core._plan import Plan
from flare_core.application._aggregator import Aggregator
from flare_core.application._distribution import Distribution, Send
from flare_core.application._events import (
    Observer,
    Published,
    RoundPlayed,
    RoundRecord,
    RunPaused,
    RunResumed,
    SiteReport,
    Updated,
    UpdateIgnored,
)
from flare_core.application._intake import Intake
from flare_core.application._lobby import Lobby
from flare_core.application._opening import Initial
from flare_core.application._publication import Publication, blake3_of
from flare_core.application._round_report import RoundReport
from flare_core.application._run_store import (
    Kept,
    KeptUpdate,
    Ledger,
    RunStore,
    digest_of,
)
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    INITIAL,
    SHORT_BYTES,
    Aborted,
    Committed,
    Notice,
    Offer,
    Parcel,
    Want,
)
from flare_core.federation import Round, Strategy

_log = logging.getLogger(__name__)


@final
class Rounds:
    """Plays the rounds, from the initial weights on.

    Args:
        plan: What is played.
        lobby: Who takes part.
        intake: Receives the updates.
        strategy: Moves the model.
        spool: For what is underway.
        worker: Works on models meanwhile.
        ledger: Keeps what must outlive this server.
        send: How to answer a site.
        observer: Told of everything that happens.
        recorded: Told of each global model that is on record: its number and hash.
        failed: Told why the run cannot go on, and of the site that is to blame.
        patient: Whether to wait for sites that are gone; else the run fails.

    Attributes:
        weights: Examples of each site in the last round that was played.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        lobby: Lobby,
        intake: Intake,
        strategy: Strategy,
        spool: Spool,
        worker: Worker,
        ledger: Ledger,
        send: Send,
        observer: Observer,
        recorded: Callable[[int, str], None],
        failed: Callable[[str, str], None],
        patient: bool,
    ) -> None:
        self._plan = plan
        self._lobby = lobby
        self._intake = intake
        self._strategy = strategy
        self._spool = spool
        self._worker = worker
        self._ledger = ledger
        self._send = send
        self._observer = observer
        self._recorded = recorded
        self._failed = failed
        self._patient = patient
        self._round: Round | None = None
        self._report = RoundReport(0)
        self._model: Publication | None = None
        self._distribution: Distribution | None = None
        self._aggregator: Aggregator | None = None
        self._updates: dict[str, ModelState] = {}
        self._folded: list[str] = []
        self._closing = False
        self._owed: list[tuple[str, Offer]] = []
        self._paused = ""
        self.weights: Mapping[str, int] = {}

    @property
    def begun(self) -> bool:
        """Whether there are weights to start from."""
        return self._aggregator is not None

    @property
    def number(self) -> int:
        """The round being played, or the number of rounds played."""
        return INITIAL if self._round is None else self._round.number

    @property
    def finished(self) -> bool:
        """Whether the final model is out."""
        return self.number == self._plan.rounds

    def begin(self, initial: Initial) -> None:
        """Start from the weights of a site."""
        path, offer = initial.parcel.path, initial.parcel.offer
        assert path is not None  # noqa: S101 - only a later one may be short
        self._get_ready(initial.layout, offer.num_bytes)
        self._publish(self._aggregator_of_it.first(path, initial.stream), 0, None)

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
        path = self._spool.model(number)
        try:
            stream = digest_of(path)
        except OSError as exc:
            msg = f"the global model of round {number}, {path}: {exc.strerror}"
            raise ConfigurationError(msg) from exc
        if stream != kept.stream:
            msg = (
                f"the global model of round {number}, {path}, is damaged: expected "
                f"XXH3-128 {kept.stream.hex()}, got {stream.hex()}; restore it from a "
                "backup, or stop the run"
            )
            raise ConfigurationError(msg)
        self._get_ready(layout, path.stat().st_size)
        model = self._aggregator_of_it.first(path, stream)
        invited = {
            name
            for name, standing in kept.sites.items()
            if standing.present and standing.since <= number
        }
        self._open(model, number, invited | {one.site for one in kept.updates})
        before = kept.record or (kept.records[-1] if kept.records else None)
        if before is not None:
            self.weights = {n: one.num_examples for n, one in before.sites.items()}
        for update in kept.updates:
            self._restore(update)
        self._put_on_record(model, number, kept.record)

    def announce(self, site: str) -> None:
        """Tell a site of the global model, unless its update is in already."""
        current = self._round
        if self._distribution is None or current is None:
            return
        if self.finished or (site in current.missing and not self._closing):
            self._distribution.announce(site)

    def serve(self, site: str, want: Want) -> None:
        """Send what a site asks for of the global model."""
        if self._distribution is not None:
            self._distribution.serve(site, want)

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
        if current is None or self._distribution is None:
            return
        if round_number < current.number:  # it has not heard that the round is over
            self._distribution.announce(site)
        elif round_number > current.number:
            reason = (
                f"site {site!r} is in round {round_number}, and the server in round "
                f"{current.number}: was its folder put back to an earlier state?"
            )
            self._send(site, Aborted(reason=reason))

    def invite(self, site: str) -> int:
        """Let a site take part that comes late, or again.

        Returns:
            The first round that it takes part in.
        """
        current = self._round
        if current is None:
            return 0
        if self._closing or self.finished:
            return min(current.number + 1, self._plan.rounds)
        if site not in current.cohort and not self._paused:
            return current.number + 1
        current.invite(site)
        self._intake.expect(site)
        self._say_whether_it_waits(current)
        return current.number

    def lose(self, site: str, why: str) -> None:
        """Go on without a site, if the round can."""
        current = self._round
        if current is None or self.finished:
            return
        current.lose(site)
        last = current.number + 1 == self._plan.rounds
        least = self._plan.selection.least
        none_follows = not last and len(self._lobby.present) < least
        if not self._patient and (current.short_by or none_follows):
            self._give_up(current, why, site)
            return
        self._say_whether_it_waits(current)
        self._go_on(current)

    def admit(self, parcel: Parcel, weights: ModelState) -> None:
        """Let an update count, and fold what is next in the cohort's order."""
        site, offer = parcel.site, parcel.offer
        current, number = self._round, offer.round_number
        if current is None or not current.receive(site, number, offer.num_examples):
            self._observer(UpdateIgnored(site, number))
            return
        if offer.spooled and self._distribution is not None:
            self._distribution.shared(site)
        parcel = parcel.plain
        report = self._report.received(site, offer)
        self._updates[site] = weights
        self._ledger.keep(lambda archive: archive.take(site, parcel.path, weights))
        self._ledger.write(
            partial(self._commit, parcel, report),
            partial(self._committed, site, offer),
        )
        self._observer(Updated(site, current.number, report))
        self._go_on(current)

    def _commit(self, parcel: Parcel, report: SiteReport, store: RunStore) -> None:
        """Keep an update, unless the model that it is part of is kept next."""
        if not self._closing:
            store.committed(parcel, report)

    def _committed(self, site: str, offer: Offer) -> None:
        """Say that an update is safe, as soon as it is."""
        if self._closing and offer.round_number == self.number:
            self._owed.append((site, offer))
        else:
            self._send(site, Committed(stream=offer.stream))

    @property
    def _aggregator_of_it(self) -> Aggregator:
        assert self._aggregator is not None  # noqa: S101 - there is a model
        return self._aggregator

    def _get_ready(self, layout: Layout, num_bytes: int) -> None:
        self._worker.small = num_bytes <= SHORT_BYTES
        self._aggregator = Aggregator(
            self._plan, layout, self._strategy, self._spool, self._worker.each
        )

    def _restore(self, update: KeptUpdate) -> None:
        """Look at an update that was committed before this server was started."""
        parcel = self._intake.restored(update)
        if parcel is not None:
            self._worker.do(
                self._intake.inspection(parcel), partial(self._restored, parcel, update)
            )

    def _restored(
        self, parcel: Parcel, update: KeptUpdate, weights: ModelState | Refusal
    ) -> None:
        current = self._round
        assert current is not None  # noqa: S101 - it waits for this
        if isinstance(weights, Refusal):  # it is damaged, and its site is asked again
            _log.warning("a kept update is of no use: %s", weights)
            self._intake.expect(parcel.site)
        elif current.receive(parcel.site, current.number, parcel.offer.num_examples):
            site, path = parcel.site, parcel.path
            self._updates[site] = weights
            self._ledger.keep(lambda archive: archive.take(site, path, weights))
            self._report.restored(parcel.site, update.report)
            self._go_on(current)

    def _go_on(self, current: Round) -> None:
        """Fold what is ready, and end the round if that was all."""
        if self._closing:
            return
        ready = list(current.ready)
        if ready[: len(self._folded)] != self._folded:  # one came in between
            self._worker.do(self._aggregator_of_it.begin_anew)
            self._folded = []
        for site in ready[len(self._folded) :]:
            num_examples = current.num_examples[site]
            add = partial(self._aggregator_of_it.add, self._updates[site], num_examples)
            self._worker.do(add)
        self._folded = ready
        if current.complete:
            self._closing = True
            assert self._model is not None  # noqa: S101 - there is a round
            self._worker.do(
                partial(self._aggregator_of_it.finish, self._model, current.number + 1),
                partial(self._played, current),
            )

    def _played(self, current: Round, outcome: Publication | Refusal) -> None:
        """A round is over."""
        if isinstance(outcome, Refusal):
            self._failed(f"round {current.number}: {outcome}", "")
            return
        self.weights = current.num_examples
        record = self._report.record(self.weights, error_down=outcome.error)
        number, weights = current.number, self.weights
        self._ledger.keep(
            lambda archive: archive.keep_updates(number, weights),
            partial(self._publish, outcome, number + 1, record),
        )

    def _publish(
        self, model: Publication, number: int, record: RoundRecord | None
    ) -> None:
        """Keep a model, and open the round that starts from it."""
        file = model.model

        def opened() -> None:
            before = self._model
            self._open(model, number, self._lobby.present)
            for site, offer in self._owed:
                self._committed(site, offer)
            self._owed.clear()
            for site in sorted(self._lobby.present):
                self.announce(site)
            self._put_on_record(model, number, record)
            if before is not None:
                self._worker.do_aside(before.discard)
            if self._round is not None:
                self._say_whether_it_waits(self._round)

        self._ledger.write(
            lambda store: store.published(number, file.path, file.stream, record),
            opened,
        )

    def _open(self, model: Publication, number: int, invited: set[str]) -> None:
        """Wait for the updates of a round."""
        self._model = model
        self._report = RoundReport(number)
        self._updates.clear()
        self._folded = []
        self._closing = False
        least = self._plan.selection.least
        self._round = Round(number, invited, quorum=least)
        cohort = () if self.finished else self._round.cohort
        self._intake.begin(number, cohort, model.weights.layout, model)
        self._distribution = Distribution(
            model,
            number,
            final=self.finished,
            send=self._send,
            report=self._report,
        )

    def _put_on_record(
        self, model: Publication, number: int, record: RoundRecord | None
    ) -> None:
        self._worker.do(
            partial(blake3_of, model.model.path),
            partial(self._hashed, model, number, record),
        )

    def _hashed(
        self, model: Publication, number: int, record: RoundRecord | None, blake3: str
    ) -> None:
        path, layout = model.model.path, model.weights.layout
        self._ledger.keep(
            lambda archive: archive.keep_model(number, path, blake3, layout),
            partial(self._kept, model, number, record, blake3),
        )

    def _kept(
        self, model: Publication, number: int, record: RoundRecord | None, blake3: str
    ) -> None:
        """A global model is out, and the round that it came out of is over."""
        final = number == self._plan.rounds
        path, weights = model.model.path, model.weights
        self._observer(Published(number, path, weights, blake3, final))
        played = record and msgspec.structs.replace(record, blake3=blake3)
        if played is not None:
            self._observer(RoundPlayed(played))
        self._ledger.write(lambda store: store.recorded(number, blake3, played))
        self._recorded(number, blake3)

    def _say_whether_it_waits(self, current: Round) -> None:
        """Say so when the run must wait for sites, and when it need not any more."""
        if self.finished:
            return
        waits = ""
        if current.short_by:
            waits = (
                f"round {current.number} needs {self._plan.selection.least} updates; "
                f"{current.short_by} of these must come back: "
                f"{self._lobby.gone_in_words}"
            )
        if waits == self._paused:
            return
        if waits and not self._patient:
            self._give_up(current, f"sites are gone: {self._lobby.gone_in_words}", "")
            return
        self._paused = waits
        event = (
            RunPaused(current.number, waits) if waits else RunResumed(current.number)
        )
        self._observer(event)
        for site in sorted(self._lobby.present):
            self._send(site, Notice(words=waits or f"round {current.number} goes on"))

    def _give_up(self, current: Round, why: str, site: str) -> None:
        reason = (
            f"round {current.number}: {why}. The quorum of "
            f"{self._plan.selection.least} cannot be reached; set selection.quorum in "
            "the plan to go on without it"
        )
        self._failed(reason, site)
