"""What one can ask a server for beside taking part in a run, and what it answers."""

from typing import Annotated, Literal, TypeAlias

import msgspec

from flare_core._errors import ProtocolError
from flare_core._plan import Plan
from flare_core._site import SiteName

Role: TypeAlias = Literal["admin", "researcher", "site", "observer"]
State: TypeAlias = Literal[
    "waiting", "playing", "paused", "finished", "stopped", "failed"
]
RunFile: TypeAlias = Literal[
    "plan.toml",
    "rounds.jsonl",
    "result.json",
    "progress.log",
    "best.json",
    "global.safetensors",
    "best.safetensors",
]
MODELS: frozenset[RunFile] = frozenset({"global.safetensors", "best.safetensors"})
"""Of these files, those with weights in them."""
PublicKey: TypeAlias = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]
Offset: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something to be done; its class name travels as the tag."""


class Enrol(_Request, frozen=True):
    """Take part from now on, as the invitation says whose token opened this line.

    Attributes:
        key: The public key to be known by.
    """

    key: PublicKey


class Rotate(_Request, frozen=True):
    """Be known by another key, too; the old one goes after a while.

    Attributes:
        key: The new public key.
    """

    key: PublicKey


class AnnounceKey(_Request, frozen=True):
    """Tell all members of the key that the server will have next.

    Answered by `NextKey`; asked again, it says who has heard of it meanwhile.
    """


class ChangeKey(_Request, frozen=True):
    """Have the next key from now on; who has not heard of it is shut out."""


class WhoAmI(_Request, frozen=True):
    """Answered by `Identity`."""


class Status(_Request, frozen=True):
    """Answered by `ServerStatus`."""


class Invite(_Request, frozen=True):
    """Let somebody enrol; answered by `Invitation`.

    Attributes:
        name: As whom.
        role: As what.
        valid_s: For how long the invitation holds, in seconds.
    """

    name: SiteName
    role: Role
    valid_s: Annotated[float, msgspec.Meta(gt=0)]


class Revoke(_Request, frozen=True):
    """Let somebody in no more, and cut off what he has open.

    Attributes:
        name: Whom.
    """

    name: SiteName


class ListMembers(_Request, frozen=True):
    """Answered by a list of `Member`."""


class CreateRun(_Request, frozen=True):
    """Open a run for sites to join.

    Attributes:
        name: Its name, for ever.
        plan: What is played.
    """

    name: SiteName
    plan: Plan


class StopRun(_Request, frozen=True):
    """End a run for all.

    Attributes:
        run: Which.
        reason: What its sites are told.
    """

    run: SiteName
    reason: str


class ListRuns(_Request, frozen=True):
    """Answered by a list of `RunInfo`."""


class ShowRun(_Request, frozen=True):
    """Answered by `RunInfo`.

    Attributes:
        run: Which.
    """

    run: SiteName


class ReadRun(_Request, frozen=True):
    """Answered by `Piece`.

    Attributes:
        run: Which.
        file: Of its record.
        offset: Where to begin.
        wait: Whether to wait for more where the file ends, while the run goes on.
    """

    run: SiteName
    file: RunFile
    offset: Offset = 0
    wait: bool = False


class AwaitRuns(_Request, frozen=True):
    """Answered by a list of the names of the runs that await this site.

    Attributes:
        known: Those that the site knows of; the answer waits until there are others.
            Without it, it comes at once.
    """

    known: list[str] | None = None


Request: TypeAlias = (
    Enrol
    | Rotate
    | AnnounceKey
    | ChangeKey
    | WhoAmI
    | Status
    | Invite
    | Revoke
    | ListMembers
    | CreateRun
    | StopRun
    | ListRuns
    | ShowRun
    | ReadRun
    | AwaitRuns
)


class Done(msgspec.Struct, frozen=True):
    """It was done, and there is nothing to say."""


class NextKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key that the server will have next.

    Attributes:
        key: The public one, in Z85.
        untold: The members that have not heard of it yet.
    """

    key: str
    untold: list[str]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who somebody is.

    Attributes:
        name: By this name.
        role: And this is his role.
    """

    name: str
    role: Role


class Invitation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lets one party enrol, once; a file in TOML for whom it is meant, and no other.

    Attributes:
        name: As whom.
        role: As what.
        server: The address.
        server_key: The server's public key, in Z85.
        token: Proves that the invitation was read.
        expires: Until when it holds, in seconds since 1970.
    """

    name: SiteName
    role: Role
    server: str
    server_key: PublicKey
    token: Annotated[str, msgspec.Meta(min_length=32)]
    expires: float


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may connect.

    Attributes:
        name: His name.
        role: His role.
        since: When he enrolled, in seconds since 1970.
        revoked: When that ended, if it did.
        keys: His public keys; more than one while he changes them.
    """

    name: str
    role: Role
    since: float
    revoked: float | None = None
    keys: list[str] = []


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands.

    Attributes:
        name: Its name.
        plan: What is played.
        state: How it stands, in a word.
        creator: Who made it.
        created: When, in seconds since 1970.
        sites: Those that have joined and not left.
        rounds: Rounds played.
        blake3: Of the newest global model; empty if there is none.
        error: Why it ended early, or what it waits for.
    """

    name: str
    plan: Plan
    state: State
    creator: str
    created: float
    sites: list[str] = []
    rounds: int = 0
    blake3: str = ""
    error: str = ""


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Some bytes of a file.

    Attributes:
        content: As many as fit, from the offset asked for.
        size: Of the file, so far.
        growing: Whether it may grow.
    """

    content: bytes
    size: int
    growing: bool


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a server stands.

    Attributes:
        version: Of this package, at the server.
        address: Where sites connect to.
        since: When it was started, in seconds since 1970.
        members: How many may connect.
        runs: How many runs there are, by state.
    """

    version: str
    address: str
    since: float
    members: int
    runs: dict[State, int]


_REQUEST: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)


def decode_request(request: msgspec.Raw) -> Request:
    """Return what somebody asks for.

    Raises:
        ProtocolError: If it is nothing that can be asked for.
    """
    try:
        return _REQUEST.decode(request)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        msg = f"no request: {exc}"
        raise ProtocolError(msg) from exc
