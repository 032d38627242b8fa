"""A site's side of the conversation, whatever carries it: no socket, thread or clock.

One request is open at a time.  After a break the session says hello again and repeats
it, or asks for the rest of what it was receiving; a stream never begins anew.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias, final

import msgspec

from flare_core._errors import ProtocolError
from flare_core.communication._desk_messages import Notice, Renew
from flare_core.communication._messages import (
    INITIAL,
    Aborted,
    Again,
    Bye,
    Checked,
    Chunk,
    Combine,
    Commit,
    Committed,
    Hello,
    Offer,
    Ping,
    Pong,
    Propose,
    Refused,
    Start,
    ToServer,
    ToSite,
    Want,
    Welcome,
)
from flare_core.communication._safetensors import Frame
from flare_core.communication._streams import (
    CHUNK_BYTES,
    WINDOW,
    Digest,
    Incoming,
    Outgoing,
)
from flare_core.communication._wire import decode_to_site, encode

Arrived: TypeAlias = ToSite | None
"""The answer to a request; None for a stream that was received whole."""
_NOTHING: tuple[type[ToSite], ...] = (Refused, Aborted)
"""What a site must hear though it asked for nothing."""
_LAST_WORDS = (Bye, Checked, Refused, Aborted)


@final
class Session:
    """Turns requests into messages, and messages into answers.

    Args:
        hello: How the site introduces itself.

    Attributes:
        outbox: Messages to send, in order; whoever carries them empties it.
        parted: Whether the server has said its last word.
        notices: What the server wants people to know; whoever tells them empties it.
        ping_s: How often to say that the site lives while it trains, in seconds.
        next_key: The public key that the server will have soon, if it said so.
    """

    def __init__(self, hello: Hello) -> None:
        self.outbox: deque[list[Frame]] = deque()
        self.notices: deque[str] = deque()
        self.parted = False
        self.ping_s = math.inf
        self.next_key = ""
        self._hello = hello
        self._run = hello.run
        self._request: ToServer | None = None
        self._wanted = _NOTHING
        self._outgoing = Outgoing([])
        self._digest = Digest()
        self._stream = b""
        self._incoming: Incoming | None = None
        self._newest = -1

    def ask(self, request: ToServer, *wanted: type[ToSite]) -> None:
        """Open a request, which one of these messages answers."""
        self._request = request
        self._wanted = (*wanted, *_NOTHING)
        self._say(request)

    def send(
        self, offer: Offer, pieces: Sequence[Frame], *wanted: type[ToSite]
    ) -> None:
        """Offer a stream; it is open until one of these messages answers it."""
        self._outgoing = Outgoing(pieces)
        self._digest = Digest()
        short = self._outgoing.short
        self.ask(msgspec.structs.replace(offer, short=short), *wanted)
        if short:
            self._commit(offer)

    def fetch(self, stream: bytes, incoming: Incoming) -> None:
        """Ask for a stream."""
        self._stream = stream
        self._incoming = incoming
        self._wanted = (Start, Combine, *_NOTHING)  # another one, if it is gone
        self._want(incoming)

    def give_up(self) -> None:
        """Close what is open; nothing that arrives for it matters any more."""
        self.outbox.clear()
        self._close()

    def connected(self) -> None:
        """Say again, on a new connection, what the server may not have heard."""
        self.outbox.clear()
        again = self._hello.connection + 1
        self._hello = msgspec.structs.replace(
            self._hello, run=self._run, connection=again
        )
        self._say(self._hello)
        self.remind()

    def remind(self) -> None:
        """Say again what is open: it, or its answer, may have been lost."""
        if self._incoming is not None:
            self._incoming.interrupted()
            self._want(self._incoming)
        else:
            self._say_again()

    def _say_again(self) -> None:
        """Repeat what is open; after an offer the commit may be what was lost."""
        if self._request is None or isinstance(self._request, Hello):
            return
        self._say(self._request)
        if isinstance(self._request, Offer) and not self._request.spooled:
            self._commit(self._request)

    @property
    def _opens(self) -> bool:
        """Whether what is open is the offer of weights that a run starts from."""
        offer = self._request
        return isinstance(offer, Offer) and offer.round_number == INITIAL

    def receive(self, frames: Sequence[Frame]) -> tuple[Arrived] | None:
        """Take a message; return the answer to what is open, if it is that.

        Raises:
            ProtocolError: If it is none.
        """
        message = decode_to_site(frames)
        match message:
            case Chunk():
                return self._received(message)
            case Want():
                self._send_chunks(message)
            case Propose() if self._opens:  # another one was asked since, and has left
                self._say_again()
            case Welcome():
                self._run = message.run
                self.ping_s = message.ping_s
                return self._answer(message)
            case Committed() | Renew() | Ping() | Pong() | Again() | Notice():
                self._noted(message)
            case _:
                self.parted = isinstance(message, _LAST_WORDS)
                return self._answer(message)
        return None

    def _noted(self, message: Committed | Renew | Ping | Pong | Again | Notice) -> None:
        """Do what is to be done at any time.

        What was committed is kept all the same: a server may lose even what it has
        written.
        """
        match message:
            case Renew():
                self.next_key = message.key
            case Ping():
                self._say(Pong())
            case Again():
                self.connected()
            case Notice():
                self.notices.append(message.words)
            case _:
                pass

    def _answer(self, message: ToSite) -> tuple[Arrived] | None:
        if not isinstance(message, self._wanted) or self._stale(message):
            return None
        if isinstance(message, Start):
            self._newest = message.round_number
        self._close()
        return (message,)

    def _stale(self, message: ToSite) -> bool:
        return isinstance(message, Start) and message.round_number <= self._newest

    def _close(self) -> None:
        self._request = self._incoming = None
        self._wanted = _NOTHING
        self._outgoing = Outgoing([])

    def _received(self, chunk: Chunk) -> tuple[Arrived] | None:
        incoming = self._incoming
        if incoming is None or chunk.stream != self._stream:
            return None
        incoming.take(chunk.offset, chunk.frames)
        if not incoming.complete:
            self._want(incoming)
            return None
        if incoming.digest != self._stream:
            self._receive_again(incoming)
            return None
        self._close()
        return (None,)

    def _receive_again(self, incoming: Incoming) -> None:
        if not incoming.again():
            msg = (
                "the global model arrived with another digest than it was sent with, "
                "several times; what is between this site and the server changes bytes"
            )
            raise ProtocolError(msg)
        self._want(incoming)

    def _want(self, incoming: Incoming) -> None:
        wanted = incoming.wanted(WINDOW * CHUNK_BYTES)
        if wanted is not None:
            start, stop = wanted
            self._say(Want(stream=self._stream, start=start, stop=stop))

    def _send_chunks(self, want: Want) -> None:
        offer = self._request
        if not isinstance(offer, Offer) or want.stream != offer.stream:
            return
        for offset, frames in self._outgoing.chunks(want.start, want.stop):
            self._digest.saw(offset, frames)
            self.outbox.append(encode(Chunk(offer.stream, offset, frames)))
        if want.stop >= self._outgoing.num_bytes:
            self._commit(offer)

    def _commit(self, offer: Offer) -> None:
        digest = self._digest.of(self._outgoing)
        self._say(Commit(stream=offer.stream, digest=digest))

    def _say(self, message: ToServer) -> None:
        self.outbox.append(encode(message))
