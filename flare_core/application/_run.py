"""One run as the server sees it: gathering, opening, playing, parting."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias, final

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, Metrics, ModelState, Update
from flare_core._plan import Plan
from flare_core._plugins import plugin
from flare_core.application._events import (
    Observer,
    Published,
    Result,
    RoundPlayed,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    Updated,
)
from flare_core.application._lobby import Lobby
from flare_core.application._round_report import RoundReport
from flare_core.communication import (
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
    inadmissible,
    unfit,
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
        self._lobby = Lobby(plan)
        self._asked: str | None = None
        self._round: Round | None = None
        self._report = RoundReport(0)
        self._model = ModelState({})
        self._weights: Mapping[str, int] = {}
        self._final_metrics: dict[str, Metrics] = {}
        self.result = Result()
        self.over = False

    def objection(self, hello: Hello) -> str:
        """Return why a site may not take part; empty if it may."""
        return self._lobby.objection(hello)

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
                self._leave(site, message)
            case _:
                _log.info("ignored %s of site %r", message, site)

    def site_left(self, site: str, reason: str, *, failed: bool = False) -> None:
        """Note that a site has gone, and whether by a failure."""
        present = self._lobby.present
        if self.over or (site in self._lobby.joined and site not in present):
            return
        present.discard(site)
        self._observer(SiteLeft(site, reason, self._final_metrics.get(site, {})))
        if self._round is None:
            reason = f"site {site!r} left before round 0: {reason}"
            self.abort(reason, failed_site=site)
        elif self._finished:
            self._end_when_all_left()
        else:
            verb = "failed" if failed else "left"
            self._go_on_without(self._round, site, f"site {site!r} {verb}: {reason}")

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

    def _join(self, site: str, join: Join) -> None:
        if site in self._lobby.joined:
            _log.info("ignored that site %r joined again", site)
            return
        if self._lobby.full:  # it said hello before the others had joined
            self._send(site, Aborted(reason=self._lobby.too_many(site)), [])
            return
        self._lobby.enter(site, join)
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
        if self._lobby.full:
            self._compare()

    def _compare(self) -> None:
        """All have joined: refuse those that do not fit, or ask one to begin."""
        refusals = self._lobby.refusals()
        for refusal in refusals:
            self._refuse(refusal)
        if refusals:
            self.abort(str(refusals[0]), failed_site=refusals[0].site)
        elif self._preflight:
            for site in sorted(self._lobby.present):
                self._send(site, Checked(), [])
            self.over = True
        else:
            self._asked = self._lobby.opener
            self._send(self._asked, Propose(), [])

    def _begin(self, site: str, body: list[Frame]) -> None:
        """Start from the weights of the site that was asked."""
        if self._round is not None or site != self._asked:
            _log.info("ignored initial weights of site %r: nobody asked", site)
            return
        layout = self._lobby.joined[site].layout
        weights = _unpacked(site, body, layout)
        refusal = (
            weights if isinstance(weights, Refusal) else unfit(site, weights, layout)
        )
        if isinstance(weights, ModelState) and refusal is None:
            self._open_round(weights, 0)
        elif refusal is not None:
            self._refuse(refusal)
            self.abort(str(refusal), failed_site=site)

    def _open_round(self, model: ModelState, number: int) -> None:
        """Send a global model to all; it starts a round, or is the final one."""
        for array in model.values():
            array.flags.writeable = False  # it is lent to the socket
        frames = pack(model)
        final = number == self._plan.rounds
        self._model = model
        self.result = Result(rounds=number, sha256=digest(frames))
        self._observer(Published(number, frames, final))
        self._report = RoundReport(number)
        if not final:
            least = self._plan.selection.least
            sites = self._lobby.present
            self._round = Round(number, sites, model.layout, quorum=least)
        start = Start(round_number=number, final=final)
        for site in sorted(self._lobby.present):
            self._report.sent(site, self._send(site, start, frames))

    def _trained(
        self, site: str, message: Trained, body: list[Frame], num_bytes: int
    ) -> None:
        current = self._round
        if current is None or site not in current.missing:
            _log.info("ignored an update of site %r that nobody waits for", site)
            return
        admitted = self._admit(site, message, body)
        if isinstance(admitted, Refusal):
            self._refuse(admitted)
            self._lobby.present.discard(site)
            self._go_on_without(current, site, str(admitted))
        elif current.receive(admitted):
            report = self._report.received(admitted, num_bytes)
            self._observer(Updated(site, current.number, report))
            self._end_when_complete(current)
        else:
            _log.info("ignored a late update of site %r", site)

    def _admit(
        self, site: str, message: Trained, body: list[Frame]
    ) -> Update | Refusal:
        layout = self._model.layout
        weights = _unpacked(site, body, layout)
        if isinstance(weights, Refusal):
            return weights
        update = Update(
            site=site,
            round_number=message.round_number,
            weights=weights,
            num_examples=message.num_examples,
            metrics=message.metrics,
            global_metrics=message.global_metrics,
        )
        return inadmissible(update, layout) or update

    def _end_when_complete(self, current: Round) -> None:
        if not current.complete:
            return
        self._weights = current.num_examples
        report = self._report
        model = self._strategy.next_model(self._model, current.mean())
        refusal = unfit(
            f"strategy {self._plan.strategy.name}", model, self._model.layout
        )
        if refusal is not None:
            self.abort(f"round {current.number}: {refusal}")
            return
        self._open_round(model, current.number + 1)
        self._observer(RoundPlayed(report.record(self._weights, self.result.sha256)))
        if self._finished:
            self._end_when_all_left()

    def _go_on_without(self, current: Round, site: str, reason: str) -> None:
        """A site is gone in the middle of a round: go on or give up."""
        current.lose(site)
        least = self._plan.selection.least
        last = current.number + 1 == self._plan.rounds
        if current.hopeless or (not last and len(self._lobby.present) < least):
            reason = (
                f"round {current.number}: {reason}. The quorum of {least} cannot be "
                "reached; set selection.quorum in the plan to go on without it"
            )
            self.abort(reason, failed_site=site)
        else:
            self._end_when_complete(current)

    def _refuse(self, refusal: Refusal) -> None:
        self._observer(SiteRefused(refusal))
        self._send(refusal.site, Refused(refusal=refusal), [])

    def _leave(self, site: str, message: Leave) -> None:
        if site in self._lobby.joined:
            self._final_metrics[site] = message.metrics
        self._send(site, Bye(), [])
        self.site_left(site, message.reason, failed=message.failed)

    def _end_when_all_left(self) -> None:
        if self._lobby.present:
            return
        sites = dict(sorted(self._final_metrics.items()))
        weights = {site: self._weights.get(site, 1) for site in sites}
        self.result = Result(
            rounds=self.result.rounds,
            sha256=self.result.sha256,
            sites=sites,
            metrics=weighted_mean(sites, weights),
        )
        self.over = True


def _unpacked(site: str, body: list[Frame], layout: Layout) -> ModelState | Refusal:
    """Return the weights that a site sent, or why they are none."""
    try:
        return unpack(body, classes=layout.classes)
    except ProtocolError as exc:
        return Refusal(
            reason="update",
            site=site,
            what="update",
            expected="a model",
            got=str(exc),
            advice="is its connection or its version broken?",
        )
