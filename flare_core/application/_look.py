"""Looks at weights that have arrived: whether they are a model, and may count."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

from msgspec.structs import replace

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, ModelState, Update, shifted
from flare_core._plan import Admission
from flare_core.application._round_report import contribution
from flare_core.communication import (
    Frame,
    Parcel,
    body,
    decoded_file,
    file_bytes,
    fill_file,
    header,
    header_bytes,
    let_go,
    mapped,
    unpack,
    write_file,
)
from flare_core.federation import Strategy, implausible, inadmissible, unfit

_ROUNDED = 1e-9
"""By how much two sums of the same weights may differ."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What becomes of a stale update: a step from the newest model.

    Attributes:
        to: That model.
        pace: How much of the step counts.
        path: The file for what comes out.
    """

    to: ModelState
    pace: float
    path: Path


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What weights are compared with.

    Attributes:
        encoding: How they travelled.
        layout: What they must look like.
        base: The global model that they were trained from; None for those that a run
            starts from.
        round_number: The round that they would count in.
        admission: What the plan says that an update must keep to.
        strategy: Says what it needs to weigh it.
        moves: Where a stale update goes, if it is one.
    """

    encoding: str
    layout: Layout
    base: ModelState | None
    round_number: int
    admission: Admission
    strategy: Strategy
    moves: Move | None

    def at(self, parcel: Parcel) -> ModelState | Refusal:
        """Return the weights that have arrived, or why they are none."""
        site, offer = parcel.site, parcel.offer
        try:
            weights = self._read(parcel)
        except (ProtocolError, ValueError) as exc:
            return ill(site, "a model", str(exc))
        except OSError as exc:
            if offer.spooled is None:
                raise  # the server's own disk
            return ill(site, f"a file to read, {parcel.path}", f"{exc.strerror}")
        if self.base is None:
            return unfit(site, weights, self.layout) or weights
        if offer.summands:
            return self._ill_summed(parcel, weights) or weights
        update = Update(
            site=site,
            round_number=offer.round_number,
            weights=weights,
            num_examples=offer.num_examples,
            num_steps=offer.num_steps,
        )
        said = contribution(site, replace(offer, round_number=self.round_number))
        refusal = inadmissible(update, self.base, self.admission)
        refusal = refusal or self.strategy.refusal(said)
        if refusal is None and self.moves is not None:
            weights = self._moved(weights, self.base, self.moves)
            refusal = unfit(site, weights, self.layout)
        let_go(weights)  # its turn to be folded may be far
        return refusal or weights

    def _ill_summed(self, parcel: Parcel, weights: ModelState) -> Refusal | None:
        """Return what is wrong with the sum of a region.

        How far its sites went is looked at there: here only that all of them may count.
        """
        site, offer = parcel.site, parcel.offer
        members = contribution(site, offer).members
        for one in members:
            refusal = implausible(
                one.site, one.num_examples, one.num_steps, self.admission
            ) or self.strategy.refusal(one)
            if refusal is not None:
                what = f"{refusal.what} of its site {one.site!r}"
                return replace(refusal, site=site, what=what)
            if not one.squared_norm >= 0:  # nor is NaN
                expected = f"a squared length, at least 0, of its site {one.site!r}"
                return ill(site, expected, f"{one.squared_norm:g}")
        weight = math.fsum(self.strategy.weight(one) for one in members)
        if not math.isclose(offer.weight, weight, rel_tol=_ROUNDED):
            return ill(
                site, f"a weight of {weight:g} of its sites", f"{offer.weight:g}"
            )
        refusal = unfit(site, weights, self.layout)
        let_go(weights)
        return refusal

    def _read(self, parcel: Parcel) -> ModelState:
        file = parcel.contents()
        if self.encoding != "none" and self.base is not None and not parcel.is_plain:
            file = _decoded(parcel, file, self.encoding, self.base)
        if header_bytes(file) != len(header(self.layout.tensors)):
            msg = f"a header of {header_bytes(file)} bytes"
            raise ProtocolError(msg)
        return unpack(file, classes=self.layout.classes)

    def _moved(self, weights: ModelState, base: ModelState, moves: Move) -> ModelState:
        """Return a stale update as a step from another model, in a file of its own."""
        bodies = (
            body(
                spec,
                shifted(
                    weights[spec.name],
                    base[spec.name],
                    moves.to[spec.name],
                    pace=moves.pace,
                ),
            )
            for spec in self.layout.tensors
        )
        frames = itertools.chain([header(self.layout.tensors)], bodies)
        fill_file(moves.path, file_bytes(self.layout), frames)
        return unpack(mapped(moves.path), classes=self.layout.classes)


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


def ill(site: str, expected: str, got: str) -> Refusal:
    """Return the refusal of what is no update at all."""
    return Refusal(
        reason="update",
        site=site,
        what="update",
        expected=expected,
        got=got,
        advice="was its model changed while it trained, or is its version broken?",
    )
