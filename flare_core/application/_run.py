"""One run as the server sees it: who has joined, which round is on, how it ends."""

import logging
import time
from collections.abc import Callable
from typing import TypeAlias, final

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Metrics, ModelState, Update
from flare_core._plan import Plan
from flare_core._plugins import plugin
from flare_core.application._events import (
    Observer,
    Published,
    Result,
    RoundPlayed,
    RoundRecord,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    SiteReport,
    Updated,
)
from flare_core.communication import (
    PROTOCOL,
    Aborted,
    Bye,
    Checked,
    Frame,
    Hello,
    Initial,
    Join,
    Leave,
    Propose,
    Refused,
    Start,
    ToServer,
    ToSite,
    Trained,
    Welcome,
    digest,
    pack,
    unpack,
)
from flare_core.federation import (
    Round,
    Strategy,
    differing_bases,
    differing_layouts,
    differing_schedules,
    inadmissible,
    weighted_mean,
)

_log = logging.getLogger(__name__)
Send: TypeAlias = Callable[[str, ToSite, list[Frame]], int]
"""Sends a message and frames to a site; returns the bytes sent."""


@final
class Run:
    """Answers the sites' messages, and is over when all have left or it is aborted.

    Args:
        plan: What to play.
        send: How to answer a site.
        observer: Told of everything that happens.
        preflight: Whether to compare the sites only.
    """

    def __init__(
        self, plan: Plan, send: Send, observer: Observer, *, preflight: bool
    ) -> None:
        self._plan = plan
        self._send = send
        self._observer = observer
        self._preflight = preflight
        self._strategy: Strategy = plugin("flare_core.strategies", plan.strategy.name)(
            plan.strategy
        )
        self._welcomed: set[str] = set()
        self._joined: dict[str, Join] = {}
        self._present: set[str] = set()
        self._asked = ""
        self._round: Round | None = None
        self._model = ModelState({})
        self._reports: dict[str, SiteReport] = {}
        self._bytes_down: dict[str, int] = {}
        self._began = 0.0
        self._final_metrics: dict[str, Metrics] = {}
        self.result = Result()
        self.over = False

    def objection(self, hello: Hello) -> str:
        """Return why a site may not take part; empty if it may."""
        if hello.protocol != PROTOCOL:
            return (
                f"site {hello.site!r} speaks protocol {hello.protocol}, this server "
                f"{PROTOCOL}; install the same version of flare-adapters at both"
            )
        if hello.site in self._present:
            return f"a site called {hello.site!r} is connected; names must be unique"
        return self._too_many(hello.site) if self._full else ""

    def welcome(self, site: str) -> None:
        """Send the plan to a site."""
        self._welcomed.add(site)
        self._send(site, Welcome(plan=self._plan), [])

    def receive(
        self, site: str, message: ToServer, body: list[Frame], num_bytes: int
    ) -> None:
        """Take a site's message.

        Args:
            site: Who sent it.
            message: What it says.
            body: The model that came with it, if any.
            num_bytes: Size of both.
        """
        match message:
            case Join():
                self._join(site, message)
            case Initial():
                self._begin(site, body)
            case Trained():
                self._trained(site, message, body, num_bytes)
            case Leave():
                self._final_metrics[site] = message.metrics
                self._send(site, Bye(), [])
                self.site_left(site, message.reason, failed=message.failed)
            case _:
                _log.info("ignored %s of site %r", message, site)

    def site_left(self, site: str, reason: str, *, failed: bool = False) -> None:
        """Note that a site has gone, and whether by a failure."""
        if self.over or (site not in self._present and self._joined.get(site)):
            return
        self._present.discard(site)
        metrics = self._final_metrics.get(site, {})
        self._observer(SiteLeft(site, reason, metrics))
        if self._round is not None:
            self._round.lose(site)
        if self._finished:
            self._end_when_all_left()
        elif self._round is None:
            self._abort_for(site, f"site {site!r} left before round 0: {reason}")
        else:
            verb = "failed" if failed else "left"
            self._after_loss(site, f"site {site!r} {verb}: {reason}")

    def abort(self, reason: str, *, failed_site: str = "") -> None:
        """End the run for all."""
        if self.over:
            return
        for site in sorted(self._welcomed):  # it may still be loading its model
            self._send(site, Aborted(reason=reason), [])
        self.result = Result(
            rounds=self.result.rounds,
            sha256=self.result.sha256,
            error=reason,
            failed_site=failed_site,
        )
        self.over = True

    @property
    def _finished(self) -> bool:
        return self.result.rounds == self._plan.rounds

    @property
    def _full(self) -> bool:
        return len(self._joined) == self._plan.selection.sites

    def _too_many(self, site: str) -> str:
        return (
            f"the run has started with {', '.join(sorted(self._joined))} and takes no "
            f"site {site!r}; set selection.sites in the plan to the number of sites"
        )

    def _join(self, site: str, join: Join) -> None:
        if site in self._joined:
            _log.info("ignored that site %r joined again", site)
            return
        if self._full:  # it said hello before the others had joined
            self._send(site, Aborted(reason=self._too_many(site)), [])
            return
        self._joined[site] = join
        self._present.add(site)
        self._observer(
            SiteJoined(
                site,
                join.layout,
                join.stays,
                join.base,
                str(join.schedule),
                join.horizon,
            )
        )
        if self._full:
            self._compare()

    def _compare(self) -> None:
        """All have joined: refuse those that do not fit, or ask one to begin."""
        joined = self._joined
        layouts = {site: join.layout for site, join in joined.items()}
        bases = {site: join.base for site, join in joined.items()}
        schedules = {site: str(join.schedule) for site, join in joined.items()}
        refusals = [
            *differing_layouts(layouts),
            *differing_bases(bases),
            *differing_schedules(schedules),
        ]
        for refusal in refusals:
            self._refuse(refusal)
        if refusals:
            self.abort(str(refusals[0]), failed_site=refusals[0].site)
        elif self._preflight:
            for site in sorted(self._present):
                self._send(site, Checked(), [])
            self.over = True
        else:
            self._asked = min(self._present)
            self._send(self._asked, Propose(), [])

    def _begin(self, site: str, body: list[Frame]) -> None:
        if self._round is not None or site != self._asked:
            _log.info("ignored initial weights of site %r: nobody asked", site)
            return
        layout = self._joined[site].layout
        try:
            model = unpack(body, classes=layout.classes)
        except ProtocolError as exc:
            self._abort_for(site, f"site {site!r}: initial weights: {exc}")
            return
        refusal = inadmissible(_as_update(site, model), layout)
        if refusal is not None:
            self._refuse(refusal)
            self.abort(str(refusal), failed_site=site)
            return
        self._publish(model, round_number=0)

    def _publish(self, model: ModelState, *, round_number: int) -> None:
        """Send the next global model to all, and open its round if there is one."""
        frames = pack(model)
        final = round_number == self._plan.rounds
        self.result = Result(rounds=round_number, sha256=digest(frames))
        self._model = model
        self._observer(Published(round_number, frames, final))
        self._reports.clear()
        self._began = time.monotonic()
        if not final:
            self._round = Round(
                round_number,
                self._present,
                model.layout,
                quorum=self._plan.selection.least,
            )
        start = Start(round_number=round_number, final=final)
        for site in sorted(self._present):
            self._bytes_down[site] = self._send(site, start, frames)

    def _trained(
        self, site: str, message: Trained, body: list[Frame], num_bytes: int
    ) -> None:
        if self._round is None or site not in self._round.missing:
            _log.info("ignored an update of site %r that nobody waits for", site)
            return
        update, refusal = self._admit(site, message, body)
        if refusal is not None:
            self._refuse(refusal)
            self._present.discard(site)
            self._round.lose(site)
            self._after_loss(site, str(refusal))
        elif update is not None and self._round.receive(update):
            self._reports[site] = self._report(update, num_bytes)
            self._observer(Updated(site, self._round.number, self._reports[site]))
            self._end_round_when_complete()
        else:
            _log.info("ignored a late update of site %r", site)

    def _admit(
        self, site: str, message: Trained, body: list[Frame]
    ) -> tuple[Update | None, Refusal | None]:
        layout = self._model.layout
        try:
            weights = unpack(body, classes=layout.classes)
        except ProtocolError as exc:
            return None, Refusal(
                reason="update",
                site=site,
                what="update",
                expected="a model",
                got=str(exc),
                advice="is its connection or its version broken?",
            )
        update = Update(
            site=site,
            round_number=message.round_number,
            weights=weights,
            num_examples=message.num_examples,
            metrics=message.metrics,
            global_metrics=message.global_metrics,
        )
        return update, inadmissible(update, layout)

    def _report(self, update: Update, num_bytes: int) -> SiteReport:
        return SiteReport(
            num_examples=update.num_examples,
            global_metrics=update.global_metrics,
            metrics=update.metrics,
            bytes_down=self._bytes_down[update.site],
            bytes_up=num_bytes,
            seconds=time.monotonic() - self._began,
        )

    def _end_round_when_complete(self) -> None:
        if self._round is None or not self._round.complete:
            return
        number, weights = self._round.number, self._round.num_examples
        seconds = time.monotonic() - self._began
        reports = {site: self._reports[site] for site in weights}
        model = self._strategy.next_model(self._model, self._round.mean())
        before = {site: report.global_metrics for site, report in reports.items()}
        after = {site: report.metrics for site, report in reports.items()}
        self._publish(model, round_number=number + 1)
        record = RoundRecord(
            round=number,
            sites=reports,
            num_examples=sum(weights.values()),
            global_metrics=weighted_mean(before, weights),
            metrics=weighted_mean(after, weights),
            bytes_down=sum(report.bytes_down for report in reports.values()),
            bytes_up=sum(report.bytes_up for report in reports.values()),
            seconds=seconds,
            sha256=self.result.sha256,
        )
        self._observer(RoundPlayed(record))
        if self._finished:
            self._end_when_all_left()

    def _after_loss(self, site: str, reason: str) -> None:
        """A site is gone in the middle of a round: go on or give up."""
        if self._round is None:
            return
        least = self._plan.selection.least
        last = self._round.number + 1 == self._plan.rounds
        if self._round.hopeless or (not last and len(self._present) < least):
            self._abort_for(
                site,
                f"round {self._round.number}: {reason}. The quorum of {least} cannot "
                "be reached; set selection.quorum in the plan to go on without it",
            )
        else:
            self._end_round_when_complete()

    def _refuse(self, refusal: Refusal) -> None:
        self._observer(SiteRefused(refusal))
        self._send(refusal.site, Refused(refusal=refusal), [])

    def _abort_for(self, site: str, reason: str) -> None:
        self.abort(reason, failed_site=site)

    def _end_when_all_left(self) -> None:
        if self._present:
            return
        sites = dict(sorted(self._final_metrics.items()))
        self.result = Result(
            rounds=self.result.rounds,
            sha256=self.result.sha256,
            sites=sites,
            metrics=weighted_mean(sites, dict.fromkeys(sites, 1)),
        )
        self.over = True


def _as_update(site: str, weights: ModelState) -> Update:
    return Update(site=site, round_number=0, weights=weights, num_examples=1)
