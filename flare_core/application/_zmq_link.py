"""The link over ZeroMQ: our own server at the other end."""

import logging
import time
from typing import Any, final

from flare_core._errors import (
    FlareError,
    PreflightPassed,
    ProtocolError,
    RunAbortedError,
    ServerUnreachableError,
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
from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application._link import Proposal
from flare_core.application._manifest import Manifest
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
    Ping,
    Pong,
    Propose,
    Refused,
    Start,
    ToServer,
    ToSite,
    Trained,
    Welcome,
    ZmqDealer,
    decode_to_site,
    encode,
    pack,
    unpack,
)

_log = logging.getLogger(__name__)
_PING_S = 2.0
_INITIAL = -1


@final
class ZmqLink:
    """Speaks to a `Server` for one site; connects with the first call.

    Args:
        site: Who speaks, and to whom.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._manifest = Manifest(site)
        self._socket: ZmqDealer | None = None
        self._plan: Plan | None = None
        self._layout = Layout(())

    def plan(self) -> Plan:
        """Return the run's plan; asked for once."""
        if self._plan is not None:
            return self._plan
        hello = Hello(site=self._site.name, protocol=PROTOCOL)
        welcome, _ = self._ask(hello, [], Welcome)
        plan: Plan = welcome.plan
        self._plan = plan
        return plan

    def join(self, proposal: Proposal) -> GlobalModel:
        """Take part: return the model of the first round to play.

        Raises:
            PreflightPassed: If the server only wanted to compare.
        """
        self.plan()
        self._layout = proposal.weights.layout
        request = Join(
            layout=self._layout,
            base=proposal.base,
            schedule=proposal.schedule,
            stays=proposal.stays,
            horizon=proposal.horizon,
        )
        answer, body = self._ask(request, [], Propose | Start | Checked)
        if isinstance(answer, Checked):
            self._close()  # the server has ended: there is no good-bye to wait for
            raise PreflightPassed(0)
        if isinstance(answer, Propose):
            _log.info("site %r gives the initial weights", self._site.name)
            answer, body = self._hand_in(_INITIAL, Initial(), proposal.weights)
        return self._global_model(answer, body)

    def exchange(self, update: Update) -> GlobalModel:
        """Hand in an update and return the next global model."""
        message = Trained(
            round_number=update.round_number,
            num_examples=update.num_examples,
            metrics=dict(update.metrics),
            global_metrics=dict(update.global_metrics),
        )
        answer, body = self._hand_in(update.round_number, message, update.weights)
        return self._global_model(answer, body)

    def leave(
        self, metrics: Metrics, *, reason: str = "", failed: bool = False
    ) -> None:
        """Tell the server and disconnect; a server that is gone is no error."""
        if self._socket is None:
            return
        message = Leave(metrics=as_scalars(metrics), reason=reason, failed=failed)
        try:
            self._socket.send([encode(message)])
            answer: ToSite = Pong()
            while not isinstance(answer, Bye | Aborted):  # it may be behind a model
                answer, _ = self._wait(self._socket)
        except FlareError as exc:
            _log.info("site %r leaves: %s", self._site.name, exc)
        finally:
            self._close()

    def _hand_in(
        self, round_number: int, message: ToServer, weights: ModelState
    ) -> tuple[Start, list[Frame]]:
        frames = pack(weights)
        self._manifest.note(round_number, weights.layout, frames[1:])
        return self._ask(message, frames, Start)

    def _global_model(self, start: Start, body: list[Frame]) -> GlobalModel:
        weights = unpack(body, classes=self._layout.classes)
        return GlobalModel(
            round_number=start.round_number, weights=weights, final=start.final
        )

    def _ask(
        self, message: ToServer, body: list[Frame], wanted: Any
    ) -> tuple[Any, list[Frame]]:
        """Send a message and wait for one of the answers wanted."""
        if self._socket is None:
            self._socket = ZmqDealer(self._site.server)
        self._socket.send([encode(message), *body])
        answer, frames = self._wait(self._socket)
        if isinstance(answer, wanted):
            return answer, frames
        self._close(abandon=True)
        if isinstance(answer, Refused):
            raise refused(answer.refusal)
        if isinstance(answer, Aborted):
            raise RunAbortedError(answer.reason)
        msg = f"the server answered {type(message).__name__} by {answer!r}"
        raise ProtocolError(msg)

    def _wait(self, socket: ZmqDealer) -> tuple[ToSite, list[Frame]]:
        """Wait as long as the server shows that it lives."""
        heard = time.monotonic()
        while True:
            frames = socket.receive(timeout_s=min(_PING_S, self._site.patience_s / 3))
            if frames is not None:
                heard = time.monotonic()
                answer = decode_to_site(frames[0])
                if not isinstance(answer, Pong):
                    return answer, frames[1:]
            elif time.monotonic() - heard >= self._site.patience_s:
                self._close(abandon=True)
                raise ServerUnreachableError(self._site.server, self._site.patience_s)
            else:
                socket.send([encode(Ping())])

    def _close(self, *, abandon: bool = False) -> None:
        if self._socket is not None:
            self._socket.close(abandon=abandon)
            self._socket = None
