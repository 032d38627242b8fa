"""The server's desk: every request comes here, and is allowed or refused here."""

import logging
import time
from importlib.metadata import version
from typing import Final, final

import msgspec

from flare_core._errors import FlareError, ProtocolError, RequestDeniedError
from flare_core.application import Asker, Finished, Host
from flare_core.communication import (
    MODELS,
    AnnounceKey,
    Answer,
    Ask,
    AwaitRuns,
    ChangeKey,
    CreateRun,
    Denied,
    Done,
    Enrol,
    Hello,
    Identity,
    Invite,
    ListMembers,
    ListRuns,
    ReadRun,
    Request,
    Revoke,
    Rotate,
    ServerStatus,
    ShowRun,
    State,
    Status,
    StopRun,
    TurnedAway,
    WhoAmI,
    decode_request,
)
from flare_core.management._deployment._registry import INVITED, Registry
from flare_core.management._deployment._roles import MAY, Act, act_of
from flare_core.management._deployment._runs import Runs
from flare_core.management._deployment._server_key import ServerKey
from flare_core.management._deployment._trail import Trail

_log = logging.getLogger(__name__)
_LATER: Final = object()
"""There is nothing new: the answer comes when there is."""


@final
class ServerDesk:
    """Answers requests by the table of roles; for the server's thread.

    Args:
        registry: Who is who.
        trail: Told of every refusal and every act.
        server_key: Changes the server's.
    """

    def __init__(self, registry: Registry, trail: Trail, server_key: ServerKey) -> None:
        self._server_key = server_key
        self._registry = registry
        self._trail = trail
        self._address = ""
        self._since = time.time()
        self._parked: dict[bytes, tuple[Asker, Ask]] = {}
        self._parts: tuple[Host, Runs] | None = None

    def opens(self, host: Host, runs: Runs, *, address: str) -> None:
        """Begin to answer for these; the address stands in invitations."""
        self._parts = host, runs
        host.announce(self._server_key.next)
        self._address = address

    def objection(self, user: str, site: str) -> str:
        """Return why somebody may not take part as a site."""
        role = self._registry.role(user)
        if role not in MAY[Act.TAKE_PART]:
            who = f"a {role}" if role else "not enrolled"
            self._trail.refused(
                f"may not {Act.TAKE_PART}", user=user, role=role or "", claimed=site
            )
            return f"{user!r} is {who} here, and takes part in no run"
        if user != site:
            self._trail.refused("takes part as another", user=user, claimed=site)
            return (
                f"this key is that of site {user!r}, and the site file says {site!r}; "
                "use the site file that `flare accept` wrote"
            )
        self._server_key.tells(user)  # the host does, behind its welcome
        return ""

    def finished(self, hello: Hello) -> Finished | None:
        """Return the run that a site took part in and means, if that went well."""
        finished = self._opened[1].finished(hello.run, hello.site)
        if finished is not None:
            self._trail.seldom("downloaded", finished.run, hello.site, user=hello.site)
        return finished

    def garbage(self, user: str, what: str) -> None:
        """Take note of what somebody sent that means nothing."""
        self._trail.refused("no message", user=user, what_came=what[:200])

    def turned_away(self, event: TurnedAway) -> None:
        """Take note of a connection that was not let in, or was cut off."""
        self._trail.turned_away(event, self._registry.about(event.key))

    def answer(self, asker: Asker, ask: Ask) -> Answer | Denied | None:
        """Return the answer to a request; None if it comes later."""
        answer = self._answer(asker.user, ask, patient=True)
        if answer is None:
            self._parked[asker.peer] = (asker, ask)
        return answer

    def changed(self) -> None:
        """Answer those for whom there is news."""
        self._answer_parked(patient=True)

    def tick(self) -> None:
        """Answer all who wait: that there is nothing new, so that they know we live."""
        self._answer_parked(patient=False)

    def _answer_parked(self, *, patient: bool) -> None:
        for peer, (asker, ask) in list(self._parked.items()):
            if not self._registry.knows(asker.user):
                del self._parked[peer]
                continue
            answer = self._answer(asker.user, ask, patient=patient)
            if answer is not None:
                del self._parked[peer]
                self._opened[0].reply(peer, answer)

    def _answer(self, user: str, ask: Ask, *, patient: bool) -> Answer | Denied | None:
        """Return what to say to a request, whatever it is; None if it is to wait."""
        try:
            request = self._understood(user, ask)
            self._check(user, request)
            reply = self._done(user, request, patient=patient)
        except FlareError as exc:
            return Denied(number=ask.number, reason=str(exc), renew=self._renew(user))
        except Exception as exc:  # noqa: BLE001 - others are to be answered
            _log.exception("the server failed to answer %r", user)
            return Denied(number=ask.number, reason=f"the server failed: {exc!r}")
        if reply is _LATER:
            return None
        reply = msgspec.Raw(msgspec.msgpack.encode(reply))
        return Answer(number=ask.number, reply=reply, renew=self._renew(user))

    def _renew(self, user: str) -> str:
        return self._server_key.tells(user)

    def _understood(self, user: str, ask: Ask) -> Request:
        try:
            return decode_request(ask.request)
        except ProtocolError as exc:
            self._trail.refused("no request", user=user, what_came=str(exc)[:200])
            raise

    def _check(self, user: str, request: Request) -> None:
        """Refuse what somebody may not do.

        Raises:
            RequestDeniedError: If so.
        """
        if isinstance(request, Enrol) and user.startswith(INVITED):
            return
        act, role = act_of(request), self._registry.role(user)
        if act is not None and role in MAY[act]:
            return
        what = act or "enrol"
        self._trail.refused(f"may not {what}", user=user, role=role or "")
        may = " and ".join(sorted(MAY[act])) if act else "the holder of an invitation"
        who = f"a {role}" if role else "the holder of an invitation"
        msg = f"{user!r} is {who}, and may not {what}: only {may} may"
        raise RequestDeniedError(msg)

    def _done(self, user: str, request: Request, *, patient: bool) -> object:
        """Do what is asked for; what cannot be done is written down."""
        try:
            return self._reply(user, request, patient=patient)
        except RequestDeniedError as exc:
            if not isinstance(request, ReadRun | ShowRun):  # nothing was to be changed
                what = act_of(request) or "enrolment"
                self._trail.refused(what, user=user, why=str(exc))
            raise

    def _reply(self, user: str, request: Request, *, patient: bool) -> object:
        """Do what is asked for."""
        match request:
            case Rotate() | Enrol() | WhoAmI() | Invite() | Revoke() | ListMembers():
                return self._of_members(user, request)
            case ReadRun():
                return self._read(user, request, patient=patient)
            case AwaitRuns():
                names = self._opened[1].awaiting(user)
                return _LATER if patient and names == request.known else names
            case AnnounceKey():
                return self._server_key.announce(self._opened[0], user=user)
            case ChangeKey():
                self._server_key.change(self._opened[0], user=user)
                return Done()
            case _:
                return self._of_runs(user, request)

    def _of_members(
        self,
        user: str,
        request: Rotate | Enrol | WhoAmI | Invite | Revoke | ListMembers,
    ) -> object:
        match request:
            case WhoAmI():
                return self._identity(user)
            case ListMembers():
                return self._registry.members()
            case Enrol():
                return self._enrol(user, request)
            case Invite():
                return self._invite(user, request)
            case Revoke():
                return self._revoke(user, request)
            case Rotate():
                if self._registry.rotate(user, request.key):
                    self._trail.note("key changed", user=user, key=request.key)
                return Done()

    def _of_runs(
        self, user: str, request: CreateRun | StopRun | ListRuns | ShowRun | Status
    ) -> object:
        _, runs = self._opened
        match request:
            case Status():
                return self._status(runs)
            case ListRuns():
                return runs.all()
            case ShowRun():
                return runs.info(request.run)
            case CreateRun():
                runs.create(request.name, request.plan, creator=user)
            case StopRun():
                runs.stop(request.run, request.reason, user=user)
        return Done()

    @property
    def _opened(self) -> tuple[Host, Runs]:
        assert self._parts is not None  # noqa: S101 - nobody is heard before
        return self._parts

    def _identity(self, user: str) -> Identity:
        role = self._registry.role(user)
        assert role is not None  # noqa: S101 - who has none is refused before
        return Identity(name=user, role=role)

    def _enrol(self, user: str, request: Enrol) -> Identity:
        member = self._registry.enrol(user, request.key)
        self._trail.note(
            "enrolled", user=member.name, role=member.role, key=request.key
        )
        return Identity(name=member.name, role=member.role)

    def _invite(self, user: str, request: Invite) -> object:
        invitation = self._registry.invite(
            request.name,
            request.role,
            valid_s=request.valid_s,
            server=self._address,
            creator=user,
        )
        self._trail.note(
            "invited",
            user=user,
            name=request.name,
            role=request.role,
            expires=invitation.expires,
        )
        return invitation

    def _revoke(self, user: str, request: Revoke) -> Done:
        if request.name == user:
            msg = f"{user!r} cannot revoke himself; another admin can"
            raise RequestDeniedError(msg)
        self._registry.revoke(request.name)
        self._trail.note("revoked", user=user, name=request.name)
        self._opened[0].cut_off(request.name)
        return Done()

    def _status(self, runs: Runs) -> ServerStatus:
        counts: dict[State, int] = {}
        for info in runs.all():
            counts[info.state] = counts.get(info.state, 0) + 1
        return ServerStatus(
            version=version("flare-adapters"),
            address=self._address,
            since=self._since,
            members=sum(one.revoked is None for one in self._registry.members()),
            runs=counts,
        )

    def _read(self, user: str, request: ReadRun, *, patient: bool) -> object:
        piece = self._opened[1].read(request.run, request.file, request.offset)
        if request.wait and patient and piece.growing and not piece.content:
            return _LATER
        if request.file in MODELS and request.offset == 0:
            self._trail.note("downloaded", run=request.run, user=user)
        return piece
