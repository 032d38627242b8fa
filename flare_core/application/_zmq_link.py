"""The link over ZeroMQ: our own server at the other end."""

import logging
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar, final

import msgspec

from flare_core._errors import (
    FlareError,
    PolicyError,
    PreflightPassed,
    ProtocolError,
    RunAbortedError,
    refused,
)
from flare_core._model import (
    GlobalModel,
    Layout,
    Metrics,
    ModelState,
    Update,
    as_scalars,
)
from flare_core._plan import Encoding, Plan
from flare_core._site import Site
from flare_core.application._edge import Edge, plain
from flare_core.application._envelope import Envelope, facts_of
from flare_core.application._fetching import Fetching
from flare_core.application._gate import Gate
from flare_core.application._link import Proposal
from flare_core.application._secured import own_keys, remember, secured_as
from flare_core.application._spool import Spool
from flare_core.application._turn import take_turn
from flare_core.communication import (
    INITIAL,
    SHORT_BYTES,
    Aborted,
    Bye,
    Checked,
    Combine,
    Courier,
    Frame,
    Hello,
    Join,
    Leave,
    Offer,
    Propose,
    Refused,
    Start,
    Summand,
    ToSite,
    Unfit,
    Welcome,
    file_bytes,
    fill_file,
    pack,
    unpack,
    write_file,
)
from flare_core.federation import counts_late

_log = logging.getLogger(__name__)
_STREAM_BYTES = 16
_Message = TypeVar("_Message", bound=ToSite)


@final
class ZmqLink:
    """Speaks to a `Server` for one site; connects with the first call.

    Args:
        site: Who speaks, and to whom.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._gate = Gate(site)
        self._spool: Spool | None = None
        self._put = INITIAL
        self._courier: Courier | None = None
        self._plan: Plan | None = None
        self._fingerprint = self._run = ""
        self._edge = Edge(site, Encoding(), run="")
        self._layout = Layout(())
        self._envelope: Envelope | None = None
        self._fetching: Fetching | None = None

    @property
    def run(self) -> str:
        """The run's own name; empty before `plan`."""
        return self._run

    def plan(self) -> Plan:
        """Return the run's plan; asked for once.

        Raises:
            PolicyError: If the site's policy does not allow it.
        """
        if self._plan is None:
            site = self._site
            hello = Hello(site=site.name, session=_random(), run=site.run)
            self._courier = Courier(
                site.server,
                hello,
                patience_s=site.patience_s,
                secured=secured_as(site),
                learnt=partial(remember, site),
                newest=partial(own_keys, site),
            )
            welcome = self._sure(self._courier.ask(hello, Welcome), Welcome)
            with self._within_policy():
                self._fingerprint = self._gate.take_part(welcome.run, welcome.plan)
            self._plan, self._run = welcome.plan, welcome.run
            self._edge = Edge(self._site, welcome.plan.encoding, run=welcome.run)
            if self._site.spool:
                self._spool = Spool(Path(self._site.spool, welcome.run))
            self._fetching = Fetching(
                self._site.name, self._edge, self._spool, lambda: self._connected
            )
        return self._plan

    def join(self, proposal: Proposal) -> GlobalModel:
        """Take part: return the model of the first round to play.

        Raises:
            PreflightPassed: If the server only wanted to compare.
            PolicyError: If a tensor must not leave.
        """
        answer = self._after_turns(self._join(proposal))
        if isinstance(answer, Checked):
            self._gate.ended("the pre-flight is over")
            self._close()  # the server has ended: there is no good-bye to wait for
            raise PreflightPassed(0)
        if isinstance(answer, Propose):
            _log.info("site %r gives the initial weights", self._site.name)
            return self._hand_in(proposal.weights, round_number=INITIAL)
        return self._fetch(self._sure(answer, Start))

    def resume(self, proposal: Proposal, update: Update) -> GlobalModel:
        """Take part again, with an update that may have arrived before.

        Raises:
            PolicyError: If a tensor must not leave.
        """
        start = self._sure(self._after_turns(self._join(proposal)), Start)
        late = start.round_number > update.round_number
        newest = None if start.final else start.round_number
        if late and not counts_late(
            self.plan(), update.round_number, newest, counted=start.counted
        ):
            _log.info(
                "site %r goes on in round %d", self._site.name, start.round_number
            )
            self._edge.accepted_earlier()
            return self._fetch(start)
        _log.info(
            "site %r hands in what it had trained in round %d",
            self._site.name,
            update.round_number,
        )
        if self._plan is not None and self._plan.encoding.up != "none":
            self._fetch(start)  # what the update is told against
        return self.exchange(update)

    def exchange(
        self, update: Update, *, summands: Sequence[Summand] = (), weight: float = 0.0
    ) -> GlobalModel:
        """Hand in an update and return the next global model.

        Its memory is used again once nothing looks at its arrays any more, unless it
        is that of a file which the site shares with the server.

        Args:
            update: It.
            summands: What is in it, in order, if it is the sum of a region's updates.
            weight: How much that weighs together.

        Raises:
            PolicyError: If the site's policy does not allow it to leave.
        """
        return self._hand_in(
            update.weights,
            round_number=update.round_number,
            num_examples=update.num_examples,
            num_steps=update.num_steps,
            metrics=dict(update.metrics),
            global_metrics=dict(update.global_metrics),
            summands=tuple(summands),
            weight=weight,
        )

    def close(self) -> None:
        """Disconnect without a word, from any thread; who waits for something is told.

        Another link may go on for the site.
        """
        self._close(abandon=True)

    def leave(
        self, metrics: Metrics, *, reason: str = "", failed: bool = False
    ) -> None:
        """Tell the server and disconnect; a server that is gone is no error."""
        if self._courier is None:
            return
        self._gate.ended(reason, failed=failed)
        told = self._gate.told(reason) if failed else reason
        message = Leave(metrics=as_scalars(metrics), reason=told, failed=failed)
        try:
            self._courier.ask(message, Bye)
        except FlareError as exc:
            _log.info("site %r leaves: %s", self._site.name, exc)
        finally:
            self._close()

    def _join(self, proposal: Proposal) -> ToSite | None:
        """Say what the site would exchange; return what the server says to that."""
        self.plan()
        self._layout = proposal.weights.layout
        with self._within_policy():
            self._gate.join(self._layout)
        layout = self._layout
        if self._plan is not None and self._plan.sealed:
            self._envelope = Envelope(self._site, self._run, layout)
        request = Join(
            layout=layout if self._envelope is None else self._envelope.layout,
            sealed="" if self._envelope is None else layout.hash,
            plan=self._fingerprint,
            base=proposal.base,
            schedule=proposal.schedule,
            stays=proposal.stays,
            horizon=proposal.horizon,
            scales=dict(proposal.scales),
        )
        return self._connected.ask(request, Propose, Start, Checked, Combine)

    @property
    def _connected(self) -> Courier:
        if self._courier is None:
            msg = f"site {self._site.name!r} has left the run"
            raise RunAbortedError(msg)
        return self._courier

    def _hand_in(
        self,
        weights: ModelState,
        *,
        round_number: int,
        num_examples: int = 0,
        num_steps: int = 0,
        metrics: dict[str, float] | None = None,
        global_metrics: dict[str, float] | None = None,
        summands: tuple[Summand, ...] = (),
        weight: float = 0.0,
    ) -> GlobalModel:
        if not summands and weights.layout != self._layout:
            self._offer_other(weights.layout, round_number)
        leaving = plain(weights) if summands else self._edge.leaving(weights)
        with self._within_policy():
            self._gate.leaving(round_number, weights.layout, leaving.bodies)
        frames = leaving.frames
        if self._envelope is not None:
            facts = facts_of(num_examples, num_steps, global_metrics or {})
            frames = pack(self._envelope.leaving(frames, round_number, facts))
        offer = Offer(
            stream=_random(),
            num_bytes=sum(len(frame) for frame in frames),
            round_number=round_number,
            num_examples=num_examples,
            num_steps=num_steps,
            metrics=metrics or {},
            global_metrics=global_metrics or {},
            base=leaving.base,
            error=leaving.error,
            summands=summands,
            weight=weight,
        )
        answer = self._after_turns(self._offer(offer, frames))
        start = self._sure(answer, Start)
        self._edge.accepted()
        return self._fetch(start)

    def _offer(self, offer: Offer, frames: Sequence[Frame]) -> ToSite | None:
        """Send weights, or put them where the server finds them."""
        spool, number = self._spool, offer.round_number
        short = file_bytes(self._layout) <= SHORT_BYTES
        if spool is None or not spool.is_there or short:
            return self._connected.send(offer, frames, Start, Combine)
        path = spool.update(self._site.name, encoded=bool(offer.base))
        # one of the same round may be read already, and a first one be published
        write = write_file if number == self._put else fill_file
        self._put = number
        digest = write(path, offer.num_bytes, frames)
        offer = msgspec.structs.replace(offer, spooled=digest)
        return self._connected.ask(offer, Start, Combine)

    def _after_turns(self, answer: ToSite | None) -> ToSite | None:
        """Combine updates as long as it is this site's turn; return what comes then."""
        while isinstance(answer, Combine):
            answer = self._combine(answer)
        return answer

    def _combine(self, combine: Combine) -> ToSite | None:
        """Hand in the next global model; return what answers it."""
        plan, envelope, number = self._plan, self._envelope, combine.model.round_number
        if plan is None or envelope is None or self._fetching is None:
            msg = "the server asks to combine updates, in a run that is not sealed"
            raise ProtocolError(msg)
        made = take_turn(
            combine,
            plan=plan,
            layout=self._layout,
            envelope=envelope,
            fetching=self._fetching,
            folder=Path(self._site.folder or "."),
        )
        if isinstance(made, Unfit):
            return self._connected.ask(made, Start, Combine)
        if not isinstance(made, ModelState):
            return made
        leaving = plain(made)
        with self._within_policy():
            self._gate.leaving(number, made.layout, leaving.bodies)
        frames = pack(envelope.model(leaving.frames, number + 1))
        offer = Offer(
            stream=_random(),
            num_bytes=sum(len(frame) for frame in frames),
            round_number=number,
            combines=combine.token,
        )
        return self._connected.send(offer, frames, Start, Combine)

    def _offer_other(self, layout: Layout, round_number: int) -> None:
        """Have the server refuse weights of another layout, by name; send none."""
        offer = Offer(
            stream=_random(), num_bytes=0, round_number=round_number, layout=layout
        )
        self._sure(self._connected.ask(offer, Refused), Start)

    def _fetch(self, start: Start) -> GlobalModel:
        """Receive a global model, or the next one if it is gone meanwhile."""
        assert self._fetching is not None  # noqa: S101 - it has the plan
        while True:
            got = self._fetching.model(start)
            if isinstance(got, memoryview):
                break
            start = self._sure(self._after_turns(got), Start)
        if self._envelope is None:
            weights = unpack(got, classes=self._layout.classes)
        else:
            weights = self._envelope.opened(got, start.round_number)
        self._edge.arrived(start.stream, weights)
        if start.final:
            self._edge.ended()
        return GlobalModel(
            round_number=start.round_number,
            weights=weights,
            final=start.final,
            counted=start.counted,
        )

    @contextmanager
    def _within_policy(self) -> Generator[None]:
        """Tell the server which rule forbids it, if one does, so that nobody waits."""
        try:
            yield
        except PolicyError as exc:
            rule = exc.violation.rule
            try:
                self._gate.refused(exc.violation)
            finally:
                reason = f"the site's own policy does not allow it ({rule})"
                self.leave({}, reason=reason, failed=True)
            raise

    def _sure(self, answer: ToSite | None, wanted: type[_Message]) -> _Message:
        """Return the answer if it is what was wanted, else raise what it means."""
        if isinstance(answer, wanted):
            return answer
        self._close(abandon=True)
        self._gate.ended(f"the server said {answer}", failed=True)
        if isinstance(answer, Refused):
            raise refused(answer.refusal)
        if isinstance(answer, Aborted):
            raise RunAbortedError(answer.reason)
        msg = f"the server answered {answer!r} where {wanted.__name__} was expected"
        raise ProtocolError(msg)

    def _close(self, *, abandon: bool = False) -> None:
        if self._courier is not None:
            self._courier.close(abandon=abandon)
            self._courier = None


def _random() -> bytes:
    return secrets.token_bytes(_STREAM_BYTES)
