"""What is no part of a run: requests, and what people or keys have to be told."""

import msgspec

from flare_core.communication._sentence import NumBytes, Sentence, ServerKey


class Ask(Sentence, frozen=True):
    """Somebody wants something that is no part of a run.

    Attributes:
        number: Counts his requests, so that an answer is known.
        request: What he wants, in msgpack; see `decode_request`.
    """

    number: NumBytes
    request: msgspec.Raw


class Answer(Sentence, frozen=True):
    """What was asked for.

    Attributes:
        number: Of the request.
        reply: In msgpack; what it is depends on the request.
        renew: The server's next public key, if it will have another one soon.
    """

    number: NumBytes
    reply: msgspec.Raw
    renew: ServerKey = ""


class Denied(Sentence, frozen=True):
    """What was asked for will not be done, and why."""

    number: NumBytes
    reason: str
    renew: ServerKey = ""


class Notice(Sentence, frozen=True):
    """Something that whoever looks after a site will want to know.

    Attributes:
        words: What it is.
    """

    words: str


class Renew(Sentence, frozen=True):
    """The server will have another key soon.

    Attributes:
        key: The public one, in Z85.
    """

    key: ServerKey
