"""What the server takes in of the sites' weights, and how it looks at them."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, ModelState, Update, shifted
from flare_core._plan import Admission, Plan
from flare_core.application._publication import Publication
from flare_core.application._round_report import contribution
from flare_core.application._run_store import KeptUpdate, digest_of
from flare_core.application._spool import Spool
from flare_core.communication import (
    INITIAL,
    Chunk,
    Commit,
    CorruptedError,
    Frame,
    Mailbox,
    Offer,
    Parcel,
    Want,
    body,
    decoded_file,
    file_bytes,
    header,
    header_bytes,
    let_go,
    mapped,
    most_bytes,
    unpack,
    write_file,
)
from flare_core.federation import Strategy, inadmissible, misfit, unfit

_log = logging.getLogger(__name__)
Inspect: TypeAlias = Callable[[], ModelState | Refusal]
"""Returns the weights that have arrived, or why they are none; takes its time."""


@final
class Intake:
    """Receives what is waited for, and nothing else.

    Args:
        plan: Says how updates travel, and what they must keep to.
        strategy: Says what it needs to weigh them.
        spool: For what is received.
        share: Whether sites may put it there themselves.
    """

    def __init__(
        self, plan: Plan, strategy: Strategy, spool: Spool, *, share: bool
    ) -> None:
        self._strategy = strategy
        self._encoding = plan.encoding.up
        self._admission = plan.admission
        self._spool = spool
        self._share = share
        self._mailbox = Mailbox()
        self._awaited: set[str] = set()
        self._looked_at: dict[str, Offer] = {}
        self._turned_away: set[str] = set()
        self._round_number = INITIAL
        self._layout = Layout(())
        self._base: Publication | None = None
        self._before: Publication | None = None
        self._late_weight = plan.round.late_weight

    def begin(
        self,
        round_number: int,
        sites: Iterable[str],
        layout: Layout,
        base: Publication | None,
    ) -> None:
        """Wait for weights of these sites from now on.

        Args:
            round_number: The round they answer, or `INITIAL`.
            sites: Who may send some, once each.
            layout: What they must look like.
            base: The global model that the round starts from.
        """
        follows = self._base is not None and round_number == self._round_number + 1
        self._before = self._base if follows and self._late_weight else None
        self._round_number = round_number
        self._awaited = set(sites)
        self._layout = layout
        self._base = base
        for site, offer in self._mailbox.underway():
            if not self.is_late(offer):
                self._mailbox.forget(site)

    def expect(self, site: str) -> None:
        """Wait for weights of one more site."""
        self._awaited.add(site)

    def ask_again(self, refusal: Refusal) -> None:
        """Wait once more for weights that were here, and are of no use now."""
        _log.warning("a kept update is of no use: %s", refusal)
        self.expect(refusal.site)

    def restored(self, update: KeptUpdate) -> Parcel | None:
        """Return an update that is here from before; None if it is damaged."""
        site, path = update.site, None
        if update.file:
            path = self._spool.update(site, encoded=False)
            if not path.exists() or digest_of(path) != update.digest:
                _log.warning("the update of site %r, %s, is damaged", site, path)
                return None
        self._awaited.discard(site)
        return Parcel(site, update.offer, path)

    def has(self, site: str, offer: Offer) -> bool:
        """Return whether what is offered has arrived already."""
        return self._mailbox.has(site, offer.stream)

    def awaits(self, site: str, offer: Offer) -> bool:
        """Return whether what is offered is waited for.

        Nothing is of a site while another update of it is looked at: both would be one
        file.  `looked` tells whether something was turned away for that reason.
        """
        in_time = offer.round_number == self._round_number
        awaited = site in self._awaited and (in_time or self.is_late(offer))
        if awaited and site in self._looked_at:
            self._turned_away.add(site)
            return False
        return awaited

    def open(self, site: str, offer: Offer) -> Refusal | None:
        """Begin to receive what is offered; return why not if it cannot be right."""
        refusal = self._ill_offered(site, offer)
        if refusal is None:
            self._mailbox.open(site, offer, self._path(site, offer))
        return refusal

    def spooled(self, site: str, offer: Offer) -> Parcel | Refusal:
        """Return what a site has put into the spool itself; or why it will not do."""
        path = self._path(site, offer)
        refusal = self._ill_offered(site, offer) or self._ill_spooled(site, offer, path)
        if refusal is not None:
            return refusal
        self._awaited.discard(site)
        return self._mailbox.spooled(site, offer, path)

    def take(self, site: str, chunk: Chunk) -> Refusal | None:
        """Take a chunk; return what is wrong with it."""
        try:
            self._mailbox.take(site, chunk)
        except ProtocolError as exc:
            return _refusal(site, "a model", str(exc))
        return None

    def commit(self, site: str, commit: Commit) -> Parcel | Refusal | None:
        """Return what has arrived whole, or why it never will; None if not yet."""
        try:
            parcel = self._mailbox.commit(site, commit)
        except CorruptedError:
            return _refusal(site, "the bytes that were sent", "others, several times")
        if parcel is not None:
            self._awaited.discard(site)
        return parcel

    def inspection(self, parcel: Parcel) -> Inspect:
        """Return what looks at weights that have arrived, before they count.

        Then `looked` is to be called.
        """
        self._looked_at[parcel.site] = parcel.offer
        base, moved_to = self._base, None
        if self.is_late(parcel.offer):
            base, moved_to = self._before, self._base
        look = _Look(
            encoding=self._encoded,
            layout=self._layout,
            base=None if base is None else base.weights,
            admission=self._admission,
            strategy=self._strategy,
            moved_to=None if moved_to is None else moved_to.weights,
        )
        return partial(look.at, parcel)

    def looked(self, site: str) -> bool:
        """Note that weights were looked at; return whether others came meanwhile."""
        del self._looked_at[site]
        came = site in self._turned_away
        self._turned_away.discard(site)
        return came

    def is_late(self, offer: Offer) -> bool:
        """Return whether weights come a round late, and count all the same."""
        late = offer.round_number == self._round_number - 1
        return late and self._before is not None

    def counted(self, parcel: Parcel) -> Parcel:
        """Return an update as it counts, once it was looked at.

        Its file is the decoded one; a late one answers the round that it counts in.
        """
        parcel, offer = parcel.plain, parcel.offer
        if not self.is_late(offer):
            return parcel
        share = round(offer.num_examples * (self._late_weight or 1))
        offer = msgspec.structs.replace(
            offer, round_number=self._round_number, num_examples=max(1, share)
        )
        return Parcel(parcel.site, offer, parcel.path)

    def sends(self, site: str) -> bool:
        """Return whether a site is about to hand in what will count, though late."""
        looked_at = self._looked_at.get(site)
        if looked_at is not None and self.is_late(looked_at):
            return True
        return self._before is not None and self._mailbox.receives(site)

    def wants(self) -> Iterator[tuple[str, Want]]:
        """Yield what to ask of whom now; to be called after each message."""
        return self._mailbox.wants()

    def forget(self, site: str) -> None:
        """Wait for a site no more."""
        self._awaited.discard(site)
        self._mailbox.disown(site)

    def close(self) -> None:
        """Drop what is underway."""
        self._mailbox.close()

    @property
    def _encoded(self) -> str:
        """How what is waited for travels."""
        return "none" if self._base is None else self._encoding

    def _ill_offered(self, site: str, offer: Offer) -> Refusal | None:
        if offer.layout is not None:
            refusal = misfit(site, offer.layout, self._layout)
            return refusal or _refusal(site, "no layout", "the one it joined with")
        exact = file_bytes(self._layout)
        base = b""
        model = self._before if self.is_late(offer) else self._base
        if self._encoded != "none" and model is not None:
            base = model.model.stream
        if offer.base != base:
            expected = f"weights told against the global model {base.hex() or 'none'}"
            return _refusal(site, expected, f"against {offer.base.hex() or 'none'}")
        if self._encoded == "none" and offer.num_bytes != exact:
            return _refusal(site, f"{exact:,} bytes", f"{offer.num_bytes:,} bytes")
        most = most_bytes(self._layout)
        if self._encoded != "none" and offer.num_bytes > most:
            got = f"{offer.num_bytes:,} bytes"
            return _refusal(site, f"at most {most:,} bytes", got)
        return None

    def _ill_spooled(
        self, site: str, offer: Offer, path: Path | None
    ) -> Refusal | None:
        if path is None or not self._share:
            return _refusal(site, "a stream of bytes", "a file that it says to share")
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as exc:
            return _refusal(site, f"a file to read, {path}", f"{exc.strerror}")
        if size != offer.num_bytes:
            expected = f"{offer.num_bytes:,} bytes in {path}"
            return _refusal(site, expected, f"{size:,} bytes")
        return None

    def _path(self, site: str, offer: Offer) -> Path | None:
        """Return the file for weights; that of a short update would take longer."""
        first = self._base is None
        if offer.is_short and not first and not self._late_weight:
            return None
        return self._spool.update(site, encoded=self._encoded != "none")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What weights are compared with.

    Attributes:
        encoding: How they travelled.
        layout: What they must look like.
        base: The global model that they were trained from; None for those that a run
            starts from.
        admission: What the plan says that an update must keep to.
        strategy: Says what it needs to weigh it.
        moved_to: The global model that a late update is a step from now.
    """

    encoding: str
    layout: Layout
    base: ModelState | None
    admission: Admission
    strategy: Strategy
    moved_to: ModelState | None

    def at(self, parcel: Parcel) -> ModelState | Refusal:
        """Return the weights that have arrived, or why they are none."""
        site, offer = parcel.site, parcel.offer
        try:
            weights = self._read(parcel)
        except (ProtocolError, ValueError) as exc:
            return _refusal(site, "a model", str(exc))
        except OSError as exc:
            if offer.spooled is None:
                raise  # the server's own disk
            return _refusal(site, f"a file to read, {parcel.path}", f"{exc.strerror}")
        if self.base is None:
            return unfit(site, weights, self.layout) or weights
        update = Update(
            site=site,
            round_number=offer.round_number,
            weights=weights,
            num_examples=offer.num_examples,
            num_steps=offer.num_steps,
        )
        refusal = inadmissible(update, self.base, self.admission)
        refusal = refusal or self.strategy.refusal(contribution(site, offer))
        if refusal is None and self.moved_to is not None:
            weights = self._moved(parcel, weights, self.base, self.moved_to)
            refusal = unfit(site, weights, self.layout)
        let_go(weights)  # its turn to be folded may be far
        return refusal or weights

    def _read(self, parcel: Parcel) -> ModelState:
        file = parcel.contents()
        if self.encoding != "none" and self.base is not None and not parcel.is_plain:
            file = _decoded(parcel, file, self.encoding, self.base)
        if header_bytes(file) != len(header(self.layout.tensors)):
            msg = f"a header of {header_bytes(file)} bytes"
            raise ProtocolError(msg)
        return unpack(file, classes=self.layout.classes)

    def _moved(
        self, parcel: Parcel, weights: ModelState, base: ModelState, to: ModelState
    ) -> ModelState:
        """Return a late update as a step from another model, in its file."""
        path = parcel.plain.path
        assert path is not None  # noqa: S101 - where late ones count, all have a file
        bodies = (
            body(spec, shifted(weights[spec.name], base[spec.name], to[spec.name]))
            for spec in self.layout.tensors
        )
        frames = itertools.chain([header(self.layout.tensors)], bodies)
        write_file(path, file_bytes(self.layout), frames)
        return unpack(mapped(path), classes=self.layout.classes)


def _decoded(parcel: Parcel, file: Frame, encoding: str, base: ModelState) -> Frame:
    """Return the plain file of an update, which takes the encoded one's place."""
    frames = decoded_file(encoding, memoryview(file), base)
    if parcel.path is None:
        return b"".join(frames)
    path = parcel.plain.path
    assert path is not None  # noqa: S101 - it lies where the encoded one does
    write_file(path, file_bytes(base.layout), frames)
    parcel.path.unlink()
    return mapped(path)


def _refusal(site: str, expected: str, got: str) -> Refusal:
    return Refusal(
        reason="update",
        site=site,
        what="update",
        expected=expected,
        got=got,
        advice="was its model changed while it trained, or is its version broken?",
    )
