"""What a site and the server say to each other: tagged msgpack, one struct a sentence.

A message is one frame; a model follows it as the frames of `_frames`.

::

    site                      server
    Hello                 →
                          ←   Welcome        the plan
    Join                  →                  layout, base, schedule: no weights
                          ←   Propose        to one site only: send your weights
    Initial + model       →
                          ←   Start + model  round 0, when all have joined
    Trained + model       →
                          ←   Start + model  the next round, or the final model
    Leave                 →
                          ←   Bye

`Refused` and `Aborted` can answer anything; `Ping` is answered by `Pong`; in a
pre-flight `Checked` answers the joins and nothing follows.
"""

from typing import TypeAlias

import msgspec

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, TensorSpec
from flare_core._plan import Plan, Schedule
from flare_core._site import SiteName

PROTOCOL = 1
"""Raised with every change that an older peer would misread."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sentence; its class name travels as the tag."""


class Hello(_Message, frozen=True):
    """A site introduces itself."""

    site: SiteName
    protocol: int = PROTOCOL


class Join(_Message, frozen=True):
    """A site says what it would exchange, and what stays.

    Attributes:
        layout: The tensors it exchanges.
        base: Fingerprint of its frozen base; empty if nothing is frozen.
        schedule: Where its rounds end; empty if its loop has rounds of its own.
        stays: The tensors that never leave.
        horizon: What the script's own loop is set to, in words.
    """

    layout: Layout
    base: str = ""
    schedule: Schedule = Schedule()
    stays: tuple[TensorSpec, ...] = ()
    horizon: str = ""


class Initial(_Message, frozen=True):
    """The weights the run starts from follow."""


class Trained(_Message, frozen=True):
    """An update; its weights follow.

    Attributes:
        round_number: The round it answers.
        num_examples: Its aggregation weight.
        metrics: Of the local model after training.
        global_metrics: Of the global model the round started from.
    """

    round_number: int
    num_examples: int
    metrics: dict[str, float]
    global_metrics: dict[str, float]


class Leave(_Message, frozen=True):
    """A site goes.

    Attributes:
        metrics: Of the last global model it loaded.
        reason: Why it goes before the end; empty if it is the end.
        failed: Whether an error made it go.
    """

    metrics: dict[str, float]
    reason: str = ""
    failed: bool = False


class Ping(_Message, frozen=True):
    """Are you there?"""


class Welcome(_Message, frozen=True):
    """The plan of the run."""

    plan: Plan


class Propose(_Message, frozen=True):
    """Send your weights: the run starts from them."""


class Start(_Message, frozen=True):
    """A global model follows.

    Attributes:
        round_number: The round it starts, or the number of rounds played.
        final: Whether the run is over.
    """

    round_number: int
    final: bool = False


class Refused(_Message, frozen=True):
    """Something of this site is not accepted."""

    refusal: Refusal


class Aborted(_Message, frozen=True):
    """The run ends here, for all."""

    reason: str


class Checked(_Message, frozen=True):
    """The pre-flight is over and went well."""


class Bye(_Message, frozen=True):
    """The leave was noted."""


class Pong(_Message, frozen=True):
    """I am here."""


ToServer: TypeAlias = Hello | Join | Initial | Trained | Leave | Ping
ToSite: TypeAlias = Welcome | Propose | Start | Refused | Aborted | Checked | Bye | Pong

_TO_SERVER: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)
_TO_SITE: msgspec.msgpack.Decoder[ToSite] = msgspec.msgpack.Decoder(ToSite)


def encode(message: ToServer | ToSite) -> bytes:
    """Return the message as one frame."""
    return msgspec.msgpack.encode(message)


def decode_to_server(frame: bytes | memoryview) -> ToServer:
    """Return a site's message.

    Raises:
        ProtocolError: If it is none.
    """
    try:
        return _TO_SERVER.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        msg = f"no message of a site: {exc}"
        raise ProtocolError(msg) from exc


def decode_to_site(frame: bytes | memoryview) -> ToSite:
    """Return the server's message.

    Raises:
        ProtocolError: If it is none.
    """
    try:
        return _TO_SITE.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        msg = f"no message of a server: {exc}"
        raise ProtocolError(msg) from exc
