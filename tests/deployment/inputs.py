"""Malformed inputs, of every kind that a stranger or a member can send."""

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, get_args

import msgspec
import xxhash

import flare_core as flare
from flare_core._plan import Plan
from flare_core.communication import (
    INITIAL,
    AwaitRuns,
    Chunk,
    Commit,
    CreateRun,
    Enrol,
    Hello,
    Invite,
    Join,
    KeyPair,
    Leave,
    ListMembers,
    ListRuns,
    Offer,
    Ping,
    ReadRun,
    Request,
    Revoke,
    Rotate,
    RunFile,
    ShowRun,
    Status,
    StopRun,
    ToServer,
    Want,
    WhoAmI,
    encode,
    pack,
)
from site_scripts import model

Frames: TypeAlias = list[bytes]
_FILES = get_args(RunFile)
_MOST_NESTED = 100_000
_MOST_DEEP = 4
_LAYOUT = flare.ModelState(model(1, 2, 3)).layout
_HUGE = (
    *(0, -1, 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(1e308, -1e308, float("nan"), float("inf"), 5e-324, 0.5),
)
_TEXTS = (
    "",
    "x",
    "../../etc/passwd",
    "\0",
    "é" * 100,
    "[red]",
    "\x1b[2J",
    "a" * 70_000,
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them changed, put in, taken out, or moved."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(found):
                found[at] = rng.randrange(256)
            case 2:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 8, 300)))
            case 3:
                del found[at : at + rng.choice((1, 2, 8, 300))]
            case 4:
                del found[at:]
            case _:
                found[at:at] = found[: rng.choice((1, 8, 64))]
    return bytes(found)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Return some value that msgpack can hold."""
    makers: Sequence[Callable[[], Any]] = (
        lambda: rng.choice(_HUGE),
        lambda: rng.choice(_TEXTS),
        lambda: rng.choice((None, True, False)),
        lambda: rng.randbytes(rng.choice((0, 1, 16, 17, 100))),
        lambda: rng.randrange(-200, 200),
        lambda: [anything(rng, depth + 1) for _ in range(rng.randrange(5))],
        lambda: {str(anything(rng, 4)): anything(rng, depth + 1) for _ in range(3)},
        lambda: {rng.choice(_TEXTS): anything(rng, depth + 1)},
    )
    return rng.choice(makers if depth < _MOST_DEEP else makers[:5])()


def other_fields(struct_: object, rng: random.Random) -> bytes:
    """Return a message or request, with a field changed, added, or taken out."""
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(struct_))
    name = rng.choice(sorted(tree))
    match rng.randrange(4):
        case 0:
            del tree[name]
        case 1:
            tree[rng.choice(_TEXTS)] = anything(rng)
        case _:
            tree[name] = anything(rng)
    return msgspec.msgpack.encode(tree)


def nested(rng: random.Random) -> bytes:
    """Return a value within a value within a value."""
    head = rng.choice((b"\x91", b"\x81\xa1x", b"\x81\x90"))
    return head * rng.randrange(1, _MOST_NESTED)


def absurd(rng: random.Random) -> bytes:
    """Return the head of something of which there is not so much."""
    kind = rng.choice((0xDD, 0xDF, 0xDB, 0xC6, 0xC9))  # array, map, str, bin, ext
    return struct.pack(">BI", kind, rng.choice((2**32 - 1, 2**31, 10**6))) + b"x"


def malformed(struct_: object, rng: random.Random) -> bytes:
    """Return what could have become of a message or request."""
    makers: Sequence[Callable[[], bytes]] = (
        lambda: mutated(msgspec.msgpack.encode(struct_), rng),
        lambda: other_fields(struct_, rng),
        lambda: other_fields(struct_, rng),
        lambda: msgspec.msgpack.encode(anything(rng)),
        lambda: nested(rng),
        lambda: absurd(rng),
        lambda: rng.randbytes(rng.randrange(200)),
    )
    weights = (6, 6, 6, 2, 1, 1, 2)
    return rng.choices(makers, weights)[0]()


class SiteTalk:
    """What a member says that plays a run of its own, rightly or not.

    Args:
        site: Its name.
        plan: The fingerprint of the plan of its runs.
        rng: Decides.
    """

    def __init__(self, site: str, plan: str, rng: random.Random) -> None:
        self._site = site
        self._plan = plan
        self._rng = rng
        self._stream = self._session = bytes(16)
        self._file = b"".join(pack(flare.ModelState(model(1, 2, 3))))

    def opening(self, run: str) -> list[Frames]:
        """Return what brings it into a run, to its first round."""
        self._session = self._rng.randbytes(16)
        messages = [
            Hello(site=self._site, session=self._session, run=run),
            Join(layout=_LAYOUT, plan=self._plan),
            *self._hand_in(INITIAL),
        ]
        return [_frames(message) for message in messages]

    def next(self, run: str) -> list[Frames]:
        """Return something, most of which is malformed."""
        if not self._rng.randrange(4):
            number = self._rng.choice((INITIAL, 0, 0, 1, 1, 2))
            return [self._perhaps(message, 3) for message in self._hand_in(number)]
        return [self._perhaps(self._rng.choice(self._all(run)), 8)]

    def _perhaps(self, message: ToServer | Chunk, one_in: int) -> Frames:
        """Return a message, of which one in so many is as it should be."""
        kept = not self._rng.randrange(one_in)
        if isinstance(message, Chunk):
            head, *rest = _frames(message)
            return [head if kept else mutated(head, self._rng), *rest]
        if kept and not isinstance(message, Leave):
            return _frames(message)
        if not self._rng.randrange(8):
            return [self._piece() for _ in range(self._rng.randrange(6))]
        return [malformed(message, self._rng)]

    def _piece(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((0, 1, 25, 60)))

    def _hand_in(self, number: int) -> list[ToServer]:
        self._stream = self._rng.randbytes(16)
        offer = Offer(
            stream=self._stream,
            num_bytes=len(self._file),
            round_number=number,
            num_examples=1,
            num_steps=1,
            metrics={"loss": 0.5},
            short=self._file,
        )
        digest = xxhash.xxh3_128_digest(self._file)
        return [offer, Commit(stream=self._stream, digest=digest)]

    def _all(self, run: str) -> list[ToServer | Chunk]:
        number = self._rng.choice((INITIAL, 0, 0, 1, 2))
        long = Offer(
            stream=self._stream, num_bytes=len(self._file), round_number=number
        )
        return [
            Hello(site=self._site, session=self._session, run=run),
            Join(layout=_LAYOUT, plan=self._plan),
            *self._hand_in(number),
            long,
            Chunk(self._stream, 0, [self._file]),
            Want(stream=self._stream, start=0, stop=len(self._file)),
            Leave(metrics={"loss": 1.0}),
            Ping(),
        ]


def some_request(rng: random.Random, run: str) -> Request:
    """Return a request as somebody could mean it; none is about the run beside."""
    key = KeyPair.new().public.decode()
    requests: list[Request] = [
        AwaitRuns(known=["nothing"]),
        CreateRun(name=run, plan=Plan(rounds=1)),
        Enrol(key=key),
        Invite(name="friend", role="observer", valid_s=60),
        ListMembers(),
        ListRuns(),
        ReadRun(run=run, file=rng.choice(_FILES), offset=0),
        Revoke(name="friend"),
        Rotate(key=key),
        ShowRun(run=run),
        Status(),
        StopRun(run="nothing", reason="x"),
        WhoAmI(),
    ]
    return rng.choice(requests)


def asked(request: Request, number: int, rng: random.Random) -> Frames:
    """Return a malformed request, in an envelope that is right or not."""
    inner = malformed(request, rng) if rng.randrange(5) else _packed(request)
    tree = {"type": "Ask", "number": number, "request": msgspec.Raw(inner)}
    outer = msgspec.msgpack.encode(tree)
    return [outer if rng.randrange(4) else mutated(outer, rng)]


def _packed(struct_: object) -> bytes:
    return msgspec.msgpack.encode(struct_)


def _frames(message: ToServer | Chunk) -> Frames:
    return [bytes(frame) for frame in encode(message)]
