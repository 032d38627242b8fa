"""What the server takes in of the sites' weights, and how it looks at them."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias, final

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, ModelState, Update
from flare_core._plan import Admission, Plan
from flare_core.application._publication import Publication
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
from flare_core.federation import inadmissible, misfit, unfit

_log = logging.getLogger(__name__)
Inspect: TypeAlias = Callable[[], ModelState | Refusal]
"""Returns the weights that have arrived, or why they are none; takes its time."""


@final
class Intake:
    """Receives what is waited for, and nothing else.

    Args:
        plan: Says how updates travel, and what they must keep to.
        spool: For what is received.
        share: Whether sites may put it there themselves.
    """

    def __init__(self, plan: Plan, spool: Spool, *, share: bool) -> None:
        self._encoding = plan.encoding.up
        self._admission = plan.admission
        self._spool = spool
        self._share = share
        self._mailbox = Mailbox()
        self._awaited: set[str] = set()
        self._round_number = INITIAL
        self._layout = Layout(())
        self._base: Publication | None = None

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
        self._round_number = round_number
        self._awaited = set(sites)
        self._layout = layout
        self._base = base

    def expect(self, site: str) -> None:
        """Wait for weights of one more site."""
        self._awaited.add(site)

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
        """Return whether what is offered is waited for."""
        return offer.round_number == self._round_number and site in self._awaited

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
        """Return what looks at weights that have arrived, before they count."""
        return partial(
            _inspect, parcel, self._layout, self._encoded, self._base, self._admission
        )

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
        if self._encoded != "none" and self._base is not None:
            base = self._base.model.stream
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
        if self._base is None:
            return self._spool.model(INITIAL + 1)
        if offer.is_short:
            return None
        return self._spool.update(site, encoded=self._encoded != "none")


def _inspect(
    parcel: Parcel,
    layout: Layout,
    encoding: str,
    base: Publication | None,
    admission: Admission,
) -> ModelState | Refusal:
    site, offer = parcel.site, parcel.offer
    try:
        file = parcel.contents()
        if encoding != "none" and base is not None and not parcel.is_plain:
            file = _decoded(parcel, file, encoding, base.weights)
        if header_bytes(file) != len(header(layout.tensors)):
            return _refusal(site, "a model", f"a header of {header_bytes(file)} bytes")
        weights = unpack(file, classes=layout.classes)
    except (ProtocolError, ValueError) as exc:
        return _refusal(site, "a model", str(exc))
    except OSError as exc:
        if offer.spooled is None:
            raise  # the server's own disk
        return _refusal(site, f"a file to read, {parcel.path}", f"{exc.strerror}")
    if base is None:
        return unfit(site, weights, layout) or weights
    update = Update(
        site=site,
        round_number=offer.round_number,
        weights=weights,
        num_examples=offer.num_examples,
    )
    refusal = inadmissible(update, base.weights, admission)
    let_go(weights)  # its turn to be folded may be far
    return refusal or weights


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
