"""Who may do what: one table, which the server's desk enforces."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from flare_core.communication import (
    MODELS,
    AnnounceKey,
    AwaitRuns,
    ChangeKey,
    CreateRun,
    Invite,
    ListMembers,
    ListRuns,
    ReadRun,
    Request,
    Revoke,
    Role,
    Rotate,
    ShowRun,
    Status,
    StopRun,
    WhoAmI,
)

ROLES: tuple[Role, ...] = ("admin", "researcher", "site", "observer")


class Act(StrEnum):
    """What somebody may want to do, in the words of the table."""

    TAKE_PART = "take part in runs"
    CREATE = "create and stop runs"
    DOWNLOAD = "download global models"
    STATUS = "see how the server stands"
    SEE = "see runs and their records"
    MEMBERS = "invite, revoke and list members"
    OWN_KEY = "change one's own key"
    SERVER_KEY = "change the server's key"


MAY: Mapping[Act, frozenset[Role]] = MappingProxyType(
    {
        Act.TAKE_PART: frozenset[Role](("site",)),
        Act.CREATE: frozenset[Role](("admin", "researcher")),
        Act.DOWNLOAD: frozenset[Role](("admin", "researcher")),
        Act.STATUS: frozenset[Role](ROLES),
        Act.SEE: frozenset[Role](("admin", "researcher", "observer")),
        Act.MEMBERS: frozenset[Role](("admin",)),
        Act.OWN_KEY: frozenset[Role](ROLES),
        Act.SERVER_KEY: frozenset[Role](("admin",)),
    }
)
"""Who may do what.  Nothing else is allowed to anybody."""

_ACTS: Mapping[type[Request], Act] = MappingProxyType(
    {
        AnnounceKey: Act.SERVER_KEY,
        AwaitRuns: Act.TAKE_PART,
        ChangeKey: Act.SERVER_KEY,
        CreateRun: Act.CREATE,
        Invite: Act.MEMBERS,
        ListMembers: Act.MEMBERS,
        ListRuns: Act.SEE,
        ReadRun: Act.SEE,
        Revoke: Act.MEMBERS,
        Rotate: Act.OWN_KEY,
        ShowRun: Act.SEE,
        Status: Act.STATUS,
        StopRun: Act.CREATE,
        WhoAmI: Act.OWN_KEY,
    }
)


def act_of(request: Request) -> Act | None:
    """Return what a request is; None for what is no member's, which is to enrol."""
    if isinstance(request, ReadRun) and request.file in MODELS:
        return Act.DOWNLOAD
    return _ACTS.get(type(request))
