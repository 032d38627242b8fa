"""What a site and the server say to each other: tagged msgpack, one struct a sentence.

::

    site                           server
    Hello                      →
                               ←   Welcome    the plan
    Join                       →              plan, layout, base, schedule: no weights
                               ←   Propose    to one site only: send your weights
    Offer                      →              so many bytes, of this round
                               ←   Want       send these of them
    chunks                     →
                               ←   Want       as they arrive, until the last one
    Commit                     →              their digest
                               ←   Committed  all of them are safe
                               ←   Start      a global model: so many bytes
    Want                       →              send these of them
                               ←   chunks
    Leave                      →
                               ←   Bye

A site that shares the server's spool writes its update there, and its `Offer` says so:
`Committed` is the next word.  It finds the file of a global model there, too.

Where the sites combine their updates themselves, `Combine` says so to one of them, in
the place of `Start`.  It wants the streams that are named there, and its next `Offer`
is the next global model, or it says `Unfit`.

Each further round begins with the site's next `Offer`.  A site that is not invited to a
round hears nothing of it: its next `Start` may be some rounds on, or the final one.
`Refused` and `Aborted` can answer anything, and `Notice` may come at any time; `Ping`
is answered by `Pong`; in a pre-flight `Checked` answers the joins and nothing follows.
After a break a site says `Hello` again with the same session, and what it was waiting
for; a stream goes on where it was.  A script that is started again has another session;
it joins as before, and is told of the round that is played.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias, final

import msgspec

from flare_core._errors import Refusal
from flare_core._model import Layout, TensorSpec
from flare_core._plan import Plan, Schedule
from flare_core._site import SiteName
from flare_core.communication._desk_messages import (
    Answer,
    Ask,
    Denied,
    Notice,
    Renew,
)
from flare_core.communication._safetensors import Frame
from flare_core.communication._sentence import NumBytes, Sentence, Short, StreamId

PROTOCOL = 8
"""Raised with every change that an older peer would misread."""
INITIAL = -1
"""Stands for the round of the weights that a run starts from."""


class Hello(Sentence, frozen=True):
    """A site introduces itself.

    Attributes:
        site: Its name.
        session: Random; the same one after a break, so that the site is known again.
        run: The run it takes part in; empty if it does not know it yet.
        connection: Counts the connections of the session: a hello that was on its way
            when its connection broke may be read after that of the next one.
    """

    site: SiteName
    session: StreamId
    run: str = ""
    connection: NumBytes = 0
    protocol: int = PROTOCOL


class Join(Sentence, frozen=True):
    """A site says what it would exchange, and what stays.

    Attributes:
        layout: The tensors it exchanges.
        plan: Fingerprint of the plan as it was understood at the site.
        base: Fingerprint of its frozen base; empty if nothing is frozen.
        schedule: Where its rounds end; empty if its loop has rounds of its own.
        stays: The tensors that never leave.
        horizon: What the script's own loop is set to, in words.
        scales: By which LoRA weights are multiplied at the site, by the name of the
            second factor.
        sealed: The hash of the layout in what it exchanges, if that is sealed.
    """

    layout: Layout
    plan: Annotated[str, msgspec.Meta(max_length=64)]
    base: str = ""
    schedule: Schedule = Schedule()
    stays: tuple[TensorSpec, ...] = ()
    horizon: str = ""
    scales: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    sealed: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Summand(msgspec.Struct, frozen=True, kw_only=True):
    """A site whose update is in the sum that a region hands in.

    Attributes:
        site: Its name, at the region's server.
        num_examples: Examples seen in local training.
        num_steps: Optimizer steps of local training; 0 if the site does not say.
        global_metrics: Of the global model the round started from.
        squared_norm: Square of the L2 distance that its parameters are from that
            model; 0 where the strategy does not ask for it.
    """

    site: SiteName
    num_examples: int
    num_steps: int = 0
    global_metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    squared_norm: float = 0.0


class Offer(Sentence, frozen=True):
    """A site has weights to send.

    Attributes:
        stream: Names this update; the same one if it is offered again.
        num_bytes: The length of the stream.
        round_number: The round it answers; `INITIAL` for those a run starts from.
        num_examples: Examples seen in local training: its aggregation weight, if the
            strategy has no other.
        num_steps: Optimizer steps of local training; 0 if the site does not say.
        metrics: Of the local model after training.
        global_metrics: Of the global model the round started from.
        base: The stream of the global model it was encoded against, if it was.
        error: Relative error of the encoding; 0 if it loses nothing.
        layout: Of the weights, if it is not the one that the site joined with.
        short: All bytes of the stream, if they are so few that asking takes longer.
        spooled: The XXH3-128 of all bytes, if they are in the spool already, which the
            site shares with the server.
        summands: Whose updates are in it, in their order, if it is a region's sum and
            not one update: its tensors are in the types of sums.
        weight: How much these weigh together, as it was added up there.
        combines: What was to be combined, if it is the next global model: the token of
            the server's `Combine`.
    """

    stream: StreamId
    num_bytes: NumBytes
    round_number: int
    num_examples: int = 0
    num_steps: int = 0
    metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    global_metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    base: bytes = b""
    error: float = 0.0
    layout: Layout | None = None
    short: Short = b""
    spooled: StreamId | None = None
    summands: tuple[Summand, ...] = ()
    weight: float = 0.0
    combines: bytes = b""

    @property
    def is_short(self) -> bool:
        """Whether all bytes are here already."""
        return len(self.short) == self.num_bytes


class Want(Sentence, frozen=True):
    """Send these bytes of a stream.

    Attributes:
        stream: Which one.
        start: The first byte.
        stop: The one after the last.
    """

    stream: StreamId
    start: NumBytes
    stop: NumBytes


class Commit(Sentence, frozen=True):
    """All bytes of a stream were sent.

    Attributes:
        stream: Which one.
        digest: The XXH3-128 of all its bytes.
    """

    stream: StreamId
    digest: StreamId


class Unfit(Sentence, frozen=True):
    """What was to be combined cannot be: some updates are ill, or all together.

    Attributes:
        combines: The token of the server's `Combine`.
        refusals: Of each update that is ill.
        reason: Why nothing comes of the others; empty if only updates are ill.
    """

    combines: StreamId
    refusals: tuple[Refusal, ...] = ()
    reason: str = ""


class Leave(Sentence, frozen=True):
    """A site goes.

    Attributes:
        metrics: Of the last global model it loaded.
        reason: Why it goes before the end; empty if it is the end.
        failed: Whether an error made it go.
    """

    metrics: dict[str, float]
    reason: str = ""
    failed: bool = False


class Ping(Sentence, frozen=True):
    """I am here.

    Attributes:
        answer: Whether to say the same.
    """

    answer: bool = True


class Welcome(Sentence, frozen=True):
    """The plan of the run, and how to take part.

    Attributes:
        plan: What is played.
        run: The run's own name, which goes into file names at the site.
        ping_s: How often a site says that it lives, in seconds, while it trains.
    """

    plan: Plan
    run: SiteName
    ping_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0


class Propose(Sentence, frozen=True):
    """Send your weights: the run starts from them."""


class Committed(Sentence, frozen=True):
    """A stream has arrived, and counts whatever happens to the server."""

    stream: StreamId


class Delta(Sentence, frozen=True):
    """Another way to a global model, for who has an earlier one.

    Attributes:
        base: The stream of the model it was encoded against.
        stream: Of the encoded model.
        num_bytes: The length of that stream.
    """

    base: StreamId
    stream: StreamId
    num_bytes: NumBytes


class Start(Sentence, frozen=True):
    """A global model is out.

    Attributes:
        round_number: The round it starts, or the number of rounds played.
        stream: Its bytes, to be asked for.
        num_bytes: Their number.
        final: Whether the run is over.
        delta: A shorter way to it.
        short: All bytes of the stream, if they are so few that asking takes longer.
        counted: The last round that an update of this site counted in; `INITIAL` if
            none did.
    """

    round_number: int
    stream: StreamId
    num_bytes: NumBytes
    final: bool = False
    delta: Delta | None = None
    short: Short = b""
    counted: int = INITIAL


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is to be combined with others.

    Attributes:
        site: Whose it is.
        stream: Its bytes, to be asked for.
        num_bytes: Their number.
        num_examples: As in the site's offer.
        num_steps: Likewise.
        global_metrics: Likewise.
    """

    site: SiteName
    stream: StreamId
    num_bytes: NumBytes
    num_examples: int
    num_steps: int = 0
    global_metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])


class Combine(Sentence, frozen=True):
    """Make the next global model of these updates: it is this site's turn.

    Attributes:
        token: Names what is to be combined.
        model: The global model that the round started from.
        parts: The updates, in their order.
    """

    token: StreamId
    model: Start
    parts: tuple[Part, ...]


class Refused(Sentence, frozen=True):
    """Something of this site is not accepted."""

    refusal: Refusal


class Aborted(Sentence, frozen=True):
    """The run ends here, for all."""

    reason: str


class Checked(Sentence, frozen=True):
    """The pre-flight is over and went well."""


class Bye(Sentence, frozen=True):
    """The leave was noted."""


class Pong(Sentence, frozen=True):
    """I am here."""


class Again(Sentence, frozen=True):
    """Say hello, and what is open, once more: the server has lost it."""


@final
@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of a stream.

    Attributes:
        stream: Which one.
        offset: Where they begin.
        frames: The bytes.
    """

    stream: bytes
    offset: int
    frames: Sequence[Frame]


ToServer: TypeAlias = (
    Hello | Join | Offer | Want | Commit | Unfit | Leave | Ping | Pong | Ask
)
ToSite: TypeAlias = (
    Welcome
    | Propose
    | Want
    | Committed
    | Start
    | Combine
    | Refused
    | Aborted
    | Checked
    | Bye
    | Ping
    | Pong
    | Again
    | Notice
    | Renew
    | Answer
    | Denied
)
