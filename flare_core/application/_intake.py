"""What the server takes in of the sites' weights, and how it looks at them."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, ModelState
from flare_core._plan import Plan
from flare_core.application._look import Look, Move, ill
from flare_core.application._publication import Publication
from flare_core.application._run_store import KeptUpdate, digest_of
from flare_core.application._spool import Spool
from flare_core.communication import (
    INITIAL,
    Chunk,
    Commit,
    CorruptedError,
    Mailbox,
    Offer,
    Parcel,
    Want,
    file_bytes,
    most_bytes,
)
from flare_core.federation import Strategy, misfit, staleness_of

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
        self._earlier: dict[int, Publication] = {}
        self._staleness = staleness_of(plan)
        self._by_region = plan.by_region

    def begin(
        self,
        round_number: int,
        sites: Iterable[str],
        layout: Layout,
        base: Publication | None,
    ) -> list[Publication]:
        """Wait for weights of these sites from now on.

        Args:
            round_number: The round they answer, or `INITIAL`.
            sites: Who may send some, once each.
            layout: What they must look like.
            base: The global model that the round starts from.

        Returns:
            The models before that nothing will be compared with any more.
        """
        if self._base is not None:
            self._earlier[self._round_number] = self._base
        self._round_number = round_number
        self._awaited = set(sites)
        self._layout = layout
        self._base = base
        oldest = round_number - self._staleness.most
        outdated = [number for number in self._earlier if number < oldest]
        dropped = [self._earlier.pop(number) for number in outdated]
        for site, offer in self._mailbox.underway():
            if not self.is_late(offer):
                self._mailbox.forget(site)
        return dropped

    def remember(self, number: int, model: Publication) -> None:
        """Compare with a model of before, too, that an earlier server has published."""
        self._earlier[number] = model

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
            path = self._spool.kept(update.file)
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
            return ill(site, "a model", str(exc))
        return None

    def commit(self, site: str, commit: Commit) -> Parcel | Refusal | None:
        """Return what has arrived whole, or why it never will; None if not yet."""
        try:
            parcel = self._mailbox.commit(site, commit)
        except CorruptedError:
            return ill(site, "the bytes that were sent", "others, several times")
        if parcel is not None:
            self._awaited.discard(site)
        return parcel

    def inspection(self, parcel: Parcel) -> Inspect:
        """Return what looks at weights that have arrived, before they count.

        Then `looked` is to be called.
        """
        site, offer = parcel.site, parcel.offer
        self._looked_at[site] = offer
        base, moves = self._base, None
        if base is not None and self.is_late(offer):
            pace = self._staleness.pace(self.staleness(offer))
            path = self._spool.moved(site)
            moves = Move(to=base.weights, pace=pace, path=path)
            base = self._earlier[offer.round_number]
        look = Look(
            encoding="none" if offer.summands else self._encoded,
            layout=self._layout.of_sums if offer.summands else self._layout,
            base=None if base is None else base.weights,
            round_number=self._round_number,
            admission=self._admission,
            strategy=self._strategy,
            moves=moves,
        )
        return partial(look.at, parcel)

    def looked(self, site: str) -> bool:
        """Note that weights were looked at; return whether others came meanwhile."""
        del self._looked_at[site]
        came = site in self._turned_away
        self._turned_away.discard(site)
        return came

    def is_late(self, offer: Offer) -> bool:
        """Return whether weights are of an earlier round, and count all the same."""
        return offer.round_number in self._earlier

    def may_wait(self, offer: Offer) -> bool:
        """Return whether weights will count in the next round, too."""
        return self.staleness(offer) < self._staleness.most

    def staleness(self, offer: Offer) -> int:
        """Return how many global models came since weights were trained from one."""
        return self._round_number - offer.round_number

    def counted(self, parcel: Parcel) -> Parcel:
        """Return an update as it counts, once it was looked at.

        Its file is the decoded one; a late one answers the round that it counts in, and
        has a file of its own, so that it can be looked at again.
        """
        plain, offer = parcel.plain, parcel.offer
        if not self.is_late(offer):
            return plain
        offer = msgspec.structs.replace(
            offer,
            round_number=self._round_number,
            num_examples=self._staleness.num_examples(offer.num_examples),
        )
        return Parcel(parcel.site, offer, self._spool.moved(parcel.site))

    def sends(self, site: str) -> bool:
        """Return whether a site is about to hand in what will count, though late."""
        looked_at = self._looked_at.get(site)
        if looked_at is not None and self.is_late(looked_at):
            return True
        return bool(self._earlier) and self._mailbox.receives(site)

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
            return refusal or ill(site, "no layout", "the one it joined with")
        if offer.summands:
            return self._ill_summed(site, offer)
        exact = file_bytes(self._layout)
        base = b""
        model = self._earlier.get(offer.round_number, self._base)
        if self._encoded != "none" and model is not None:
            base = model.model.stream
        if offer.base != base:
            expected = f"weights told against the global model {base.hex() or 'none'}"
            return ill(site, expected, f"against {offer.base.hex() or 'none'}")
        if self._encoded == "none" and offer.num_bytes != exact:
            return ill(site, f"{exact:,} bytes", f"{offer.num_bytes:,} bytes")
        most = most_bytes(self._layout)
        if self._encoded != "none" and offer.num_bytes > most:
            got = f"{offer.num_bytes:,} bytes"
            return ill(site, f"at most {most:,} bytes", got)
        return None

    def _ill_summed(self, site: str, offer: Offer) -> Refusal | None:
        """Return what is wrong with the sum of a region, as it is offered."""
        if not self._by_region or self._base is None:
            return ill(site, "the update of one site", "the sum of several")
        try:
            exact = file_bytes(self._layout.of_sums)
        except ValueError as exc:
            return ill(site, "a model without complex tensors", str(exc))
        total = sum(one.num_examples for one in offer.summands)
        if total != offer.num_examples:
            expected = f"{total:,} examples, as of its sites together"
            return ill(site, expected, f"{offer.num_examples:,}")
        if offer.base or offer.num_bytes != exact:
            return ill(site, f"{exact:,} bytes", f"{offer.num_bytes:,} bytes")
        return None

    def _ill_spooled(
        self, site: str, offer: Offer, path: Path | None
    ) -> Refusal | None:
        if path is None or not self._share:
            return ill(site, "a stream of bytes", "a file that it says to share")
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as exc:
            return ill(site, f"a file to read, {path}", f"{exc.strerror}")
        if size != offer.num_bytes:
            expected = f"{offer.num_bytes:,} bytes in {path}"
            return ill(site, expected, f"{size:,} bytes")
        return None

    def _path(self, site: str, offer: Offer) -> Path | None:
        """Return the file for weights; that of a short update would take longer."""
        first = self._base is None
        if offer.is_short and not first and not self._staleness.most:
            return None
        encoded = self._encoded != "none" and not offer.summands
        return self._spool.update(site, encoded=encoded)
