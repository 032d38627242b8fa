"""Has the sites combine their updates themselves, one of them in turn."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

import xxhash

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, ModelState
from flare_core._plan import Plan
from flare_core.application._distribution import Send
from flare_core.application._lobby import Lobby
from flare_core.application._look import ill
from flare_core.application._publication import Publication, Publisher
from flare_core.application._run_store import check_file
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import (
    CHUNK_BYTES,
    INITIAL,
    SHORT_BYTES,
    WINDOW,
    Chunk,
    Combine,
    Commit,
    CorruptedError,
    Join,
    Mailbox,
    Offer,
    Outgoing,
    Part,
    ToServer,
    Unfit,
    Want,
    file_bytes,
    pack,
)
from flare_core.federation import Contribution, Round

_TOKEN_BYTES = 16
_Update = tuple[Contribution, Outgoing, bytes]


@final
@dataclass(frozen=True, slots=True)
class _Pending:
    """What is to be combined.

    Attributes:
        token: Its name.
        current: The round.
        model: What it has started from.
        sites: Whose updates they are, in order.
        parts: What there is to say of each.
        streams: Their bytes, by stream.
        then: Called with the next model, or with why there is none.
    """

    token: bytes
    current: Round
    model: Publication
    sites: tuple[str, ...]
    parts: tuple[Part, ...]
    streams: Mapping[bytes, Outgoing]
    then: Callable[[Publication | str], None]


@final
class Swarm:
    """What a `Folding` is in a star: it hands the updates on, and cannot read them.

    The turn goes round by the sites that are there; that of one that is gone before it
    is done passes to another, and whoever does it comes to the same bits.

    Args:
        plan: Of the run.
        layout: Of a sealed model.
        spool: For what arrives.
        worker: Takes digests while the server answers.
        lobby: Who is there.
        send: How to reach a site.
        reject: Told of what the site whose turn it is finds ill.
    """

    defers: Final = True

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        *,
        spool: Spool,
        worker: Worker,
        lobby: Lobby,
        send: Send,
        reject: Callable[[Refusal], None],
    ) -> None:
        self._layout = layout
        self._publisher = Publisher(layout, plan.encoding, spool)
        self._spool = spool
        self._worker = worker
        self._lobby = lobby
        self._send = send
        self._reject = reject
        self._mailbox = Mailbox()
        self._updates: dict[str, tuple[ModelState, Contribution]] = {}
        self._pending: _Pending | None = None
        self._asked = ""

    def first(
        self, path: Path, stream: bytes, then: Callable[[Publication | str], None]
    ) -> None:
        """Publish the model that is started from; see `Folding.first`."""
        name = self._spool.model(stream)
        self._spool.put(path, name)
        then(self._published(name, stream))

    def resume(self, number: int, stream: bytes, memory: bytes) -> Publication:
        """Go on from a model that an earlier server has published.

        Raises:
            ConfigurationError: If its file is damaged.
        """
        assert not memory  # noqa: S101 - no strategy remembers anything here
        path = self._spool.model(stream)
        check_file(path, f"the global model of round {number}", stream)
        self._spool.hold(path)
        return self._published(path, stream)

    def earlier(
        self, number: int, streams: Mapping[int, bytes]
    ) -> Iterator[tuple[int, Publication]]:
        """Yield nothing: no update counts late."""
        del number, streams
        return iter(())

    def begin(self, before: ModelState) -> None:
        """Forget the updates of the round before."""
        del before
        self._updates.clear()
        self._pending, self._asked = None, ""

    def keep(self, weights: ModelState, update: Contribution) -> None:
        """Take an update, sealed as it is."""
        self._updates[update.site] = weights, update

    def advance(self, current: Round) -> None:
        """Do nothing: nothing is combined before all is there."""

    def finish(
        self,
        current: Round,
        model: Publication,
        then: Callable[[Publication | str], None],
    ) -> None:
        """Have the next model made, unless that was asked for.

        Args:
            current: The round; it is complete.
            model: The one that it started from.
            then: Called with the next one, or with why there is none.
        """
        sites = current.ready
        if self._pending is not None and self._pending.sites == sites:
            return
        self._pending, self._asked = None, ""
        chosen = [self._updates[site] for site in sites]
        self._worker.do(
            partial(_with_digests, chosen),
            partial(self._prepared, current, model, then),
        )

    def takes(self, site: str, message: ToServer | Chunk) -> bool:
        """Take a message, if it is about what is combined; tell whether it was."""
        pending = self._pending
        if pending is None:
            return False
        match message:
            case Want() if site == self._asked and message.stream in pending.streams:
                self._serve(site, message, pending.streams[message.stream])
            case Offer() if message.combines:
                self._offered(site, message, pending)
            case Chunk() | Commit() if self._mailbox.receives(site):
                self._arrives(site, message, pending)
            case Unfit() if (site, message.combines) == (self._asked, pending.token):
                self._unfit(message, pending)
            case Join() | Offer() if self._may_begin(site):
                self._ask(site)
                return False
            case _:
                return False
        for other, want in self._mailbox.wants():
            self._send(other, want)
        return True

    def _may_begin(self, site: str) -> bool:
        """Return whether a site that was away has the turn, or may have nobody's."""
        return self._asked in {"", site} and site in self._lobby.joined

    def lose(self, site: str) -> None:
        """Do without a site: another one has its turn."""
        self._mailbox.disown(site)
        if self._pending is not None and site == self._asked:
            self._pass_on(self._pending)

    def _prepared(
        self,
        current: Round,
        model: Publication,
        then: Callable[[Publication | str], None],
        updates: list[_Update],
    ) -> None:
        sites = tuple(said.site for said, _, _ in updates)
        if sites != current.ready:  # one has come back meanwhile
            return
        parts = tuple(
            Part(
                site=said.site,
                stream=stream,
                num_bytes=outgoing.num_bytes,
                num_examples=said.num_examples,
                num_steps=said.num_steps,
                global_metrics=dict(said.global_metrics),
            )
            for said, outgoing, stream in updates
        )
        self._pending = _Pending(
            token=secrets.token_bytes(_TOKEN_BYTES),
            current=current,
            model=model,
            sites=sites,
            parts=parts,
            streams={stream: outgoing for _, outgoing, stream in updates},
            then=then,
        )
        self._pass_on(self._pending)

    def _pass_on(self, pending: _Pending) -> None:
        """Give the turn to a site that is there; if none is, to the next that comes."""
        there = sorted(self._lobby.present - {self._asked})
        self._asked = ""
        if there:
            self._ask(there[pending.current.number % len(there)])

    def _ask(self, site: str) -> None:
        pending = self._pending
        assert pending is not None  # noqa: S101 - there is something to be done
        self._asked = site
        number = pending.current.number
        counted = self._lobby.counted.get(site, INITIAL)
        model = pending.model.start(number, final=False, counted=counted)
        combine = Combine(token=pending.token, model=model, parts=pending.parts)
        self._send(site, combine)

    def _serve(self, site: str, want: Want, outgoing: Outgoing) -> None:
        stop = min(want.stop, want.start + WINDOW * CHUNK_BYTES)
        for offset, frames in outgoing.chunks(want.start, stop):
            self._send(site, Chunk(want.stream, offset, frames))

    def _offered(self, site: str, offer: Offer, pending: _Pending) -> None:
        if site != self._asked:
            return  # another one has the turn now; it hears of the model with the rest
        if offer.combines != pending.token:
            self._ask(site)
        elif offer.num_bytes != file_bytes(self._layout):
            expected = f"a model of {file_bytes(self._layout):,} bytes"
            self._reject(ill(site, expected, f"{offer.num_bytes:,} bytes"))
        else:
            self._mailbox.open(site, offer, self._spool.unfinished("combined"))

    def _arrives(self, site: str, message: Chunk | Commit, pending: _Pending) -> None:
        try:
            if isinstance(message, Chunk):
                self._mailbox.take(site, message)
                return
            parcel = self._mailbox.commit(site, message)
        except (ProtocolError, CorruptedError) as exc:
            self._reject(ill(site, "the next global model", str(exc)))
            return
        if parcel is None or parcel.path is None:
            return
        self._pending, self._asked = None, ""
        stream = message.digest
        pending.then(self._publisher.next(parcel.path, stream, pending.model))

    def _unfit(self, message: Unfit, pending: _Pending) -> None:
        refusals = [one for one in message.refusals if one.site in pending.sites]
        if not refusals and not message.reason:
            self._pass_on(pending)
            return
        self._pending, self._asked = None, ""
        if message.reason:
            pending.then(message.reason)
            return
        for refusal in refusals:
            pending.current.withdraw(refusal.site)
        for refusal in refusals:
            self._reject(refusal)

    def _published(self, path: Path, stream: bytes) -> Publication:
        self._worker.small = path.stat().st_size <= SHORT_BYTES
        return self._publisher.first(path, stream)


def _with_digests(updates: list[tuple[ModelState, Contribution]]) -> list[_Update]:
    """Return the bytes of each update, and their XXH3-128."""
    found: list[_Update] = []
    for weights, said in updates:
        frames = pack(weights)
        digest = xxhash.xxh3_128()
        for frame in frames:
            digest.update(frame)
        found.append((said, Outgoing(frames), digest.digest()))
    return found
