"""The link over ZeroMQ: our own server at the other end."""

import logging
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar, final

import msgspec
import xxhash

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
from flare_core.application._gate import Gate
from flare_core.application._link import Proposal
from flare_core.application._mirror import Mirror, Mirrors
from flare_core.application._secured import own_keys, remember, secured_as
from flare_core.application._spool import Spool
from flare_core.communication import (
    INITIAL,
    SHORT_BYTES,
    Aborted,
    Bye,
    Checked,
    Courier,
    Frame,
    Hello,
    Incoming,
    Join,
    Leave,
    Offer,
    Propose,
    Refused,
    Start,
    Summand,
    ToSite,
    Welcome,
    file_bytes,
    fill_file,
    mapped,
    unpack,
    write_file,
)

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
        self._mirrors = Mirrors()
        self._spool: Spool | None = None
        self._put = INITIAL
        self._courier: Courier | None = None
        self._plan: Plan | None = None
        self._fingerprint = self._run = ""
        self._edge = Edge(site, Encoding(), run="")
        self._layout = Layout(())

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
        return self._plan

    def join(self, proposal: Proposal) -> GlobalModel:
        """Take part: return the model of the first round to play.

        Raises:
            PreflightPassed: If the server only wanted to compare.
            PolicyError: If a tensor must not leave.
        """
        answer = self._join(proposal)
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
        start = self._sure(self._join(proposal), Start)
        if start.round_number > update.round_number:
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

    def exchange(self, update: Update) -> GlobalModel:
        """Hand in an update and return the next global model.

        Its memory is used again once nothing looks at its arrays any more, unless it
        is that of a file which the site shares with the server.

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
        )

    def hand_in_sum(
        self, update: Update, summands: Sequence[Summand], weight: float
    ) -> GlobalModel:
        """Hand in the sum of a region's updates, as `exchange` does an update.

        Args:
            update: The sum, and what there is to say of all together.
            summands: What is in it, in order.
            weight: How much that weighs together.

        Raises:
            PolicyError: If the region's policy does not allow it to leave.
        """
        return self._hand_in(
            update.weights,
            round_number=update.round_number,
            num_examples=update.num_examples,
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
        request = Join(
            layout=self._layout,
            plan=self._fingerprint,
            base=proposal.base,
            schedule=proposal.schedule,
            stays=proposal.stays,
            horizon=proposal.horizon,
            scales=dict(proposal.scales),
        )
        return self._connected.ask(request, Propose, Start, Checked)

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
        offer = Offer(
            stream=_random(),
            num_bytes=sum(len(frame) for frame in leaving.frames),
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
        start = self._sure(self._offer(offer, leaving.frames), Start)
        self._edge.accepted()
        return self._fetch(start)

    def _offer(self, offer: Offer, frames: Sequence[Frame]) -> ToSite | None:
        """Send weights, or put them where the server finds them."""
        spool, number = self._spool, offer.round_number
        short = file_bytes(self._layout) <= SHORT_BYTES
        if spool is None or not spool.is_there or short:
            return self._connected.send(offer, frames, Start)
        path = spool.update(self._site.name, encoded=bool(offer.base))
        # one of the same round may be read already, and a first one be published
        write = write_file if number == self._put else fill_file
        self._put = number
        digest = write(path, offer.num_bytes, frames)
        offer = msgspec.structs.replace(offer, spooled=digest)
        return self._connected.ask(offer, Start)

    def _offer_other(self, layout: Layout, round_number: int) -> None:
        """Have the server refuse weights of another layout, by name; send none."""
        offer = Offer(
            stream=_random(), num_bytes=0, round_number=round_number, layout=layout
        )
        self._sure(self._connected.ask(offer, Refused), Start)

    def _fetch(self, start: Start) -> GlobalModel:
        """Receive a global model, or the next one if it is gone meanwhile."""
        while True:
            got = self._received(start)
            if isinstance(got, memoryview):
                break
            start = self._sure(got, Start)
        weights = unpack(got, classes=self._layout.classes)
        self._edge.arrived(start.stream, weights)
        if start.final:
            self._edge.ended()
        return GlobalModel(
            round_number=start.round_number,
            weights=weights,
            final=start.final,
            counted=start.counted,
        )

    def _received(self, start: Start) -> memoryview | ToSite:
        """Return the file of a global model, or what came instead."""
        shared = self._shared(start)
        if shared is not None:
            return shared
        mirror = self._mirrors.take(start.num_bytes)
        if len(start.short) == start.num_bytes:
            mirror.write(0, [start.short])
            return mirror.file
        delta = self._edge.short_cut(start)
        if delta is not None:
            encoded = self._mirrors.take(delta.num_bytes)
            bad_news = self._stream(delta.stream, encoded)
            if bad_news is not None:
                return bad_news
            mirror.write_all(self._edge.decoded(encoded.file))
            if xxhash.xxh3_128(mirror.file).digest() == start.stream:
                return mirror.file
            _log.warning(
                "site %r: the delta of round %d gave another model than the server's; "
                "fetching the whole one",
                self._site.name,
                start.round_number,
            )
        return self._stream(start.stream, mirror) or mirror.file

    def _shared(self, start: Start) -> memoryview | None:
        """Return the file of a global model that lies in a spool on this machine."""
        if self._spool is None or len(start.short) == start.num_bytes:
            return None
        try:
            return mapped(self._spool.model(start.stream), private=True)
        except OSError as exc:  # it is on another machine, or the round has gone on
            _log.info("site %r fetches the global model: %s", self._site.name, exc)
            return None

    def _stream(self, stream: bytes, mirror: Mirror) -> ToSite | None:
        incoming = Incoming(len(mirror.file), mirror.write)
        return self._connected.fetch(stream, incoming)

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
