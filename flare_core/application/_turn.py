"""A site's turn to combine the updates of all."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

from flare_core._errors import ProtocolError, Refusal
from flare_core._model import Layout, ModelState, Update
from flare_core._plan import Plan
from flare_core.application._aggregator import Aggregator
from flare_core.application._envelope import Envelope
from flare_core.application._fetching import Fetching
from flare_core.application._look import ill
from flare_core.application._publication import Publication
from flare_core.application._spool import Spool
from flare_core.communication import (
    Combine,
    Frame,
    Part,
    ToSite,
    Unfit,
    file_bytes,
    fill_file,
    mapped,
    pack,
    unpack,
)
from flare_core.federation import Contribution, chosen, inadmissible


@final
class Turn:
    """Does with the updates of a round what a server does in a star.

    Args:
        plan: Says how they are combined, and what they must keep to.
        layout: Of the global model.
        envelope: Opens what arrives.
        combine: What the server asks for.
        before: The global model that the round started from.
        spool: For the updates and the model; a folder of this turn's own.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        *,
        envelope: Envelope,
        combine: Combine,
        before: ModelState,
        spool: Spool,
    ) -> None:
        strategy, rule = chosen(plan)
        self._plan = plan
        self._layout = layout
        self._envelope = envelope
        self._combine = combine
        self._spool = spool
        self._strategy = strategy
        self._aggregator = Aggregator(
            plan, layout, strategy=strategy, rule=rule, spool=spool, each=map
        )
        self._before = self._published(before)
        self._refusals: list[Refusal] = []

    def take(self, part: Part, file: Frame) -> None:
        """Take the next update, in their order.

        Args:
            part: What the server says of it.
            file: Its bytes, as they have arrived.
        """
        number = self._combine.model.round_number
        try:
            weights = self._envelope.update(file, part, number)
        except (ProtocolError, ValueError) as exc:
            self._refusals.append(ill(part.site, "an update to open", str(exc)))
            return
        said = Contribution(
            site=part.site,
            round_number=number,
            num_examples=part.num_examples,
            num_steps=part.num_steps,
            global_metrics=part.global_metrics,
        )
        update = Update(
            site=part.site,
            round_number=number,
            weights=weights,
            num_examples=part.num_examples,
            num_steps=part.num_steps,
        )
        refusal = inadmissible(update, self._before.weights, self._plan.admission)
        refusal = refusal or self._strategy.refusal(said)
        if refusal is not None:
            self._refusals.append(refusal)
            return
        path = self._spool.update(part.site, encoded=False)
        fill_file(path, file_bytes(self._layout), pack(weights))
        weights = unpack(mapped(path), classes=self._layout.classes)
        self._aggregator.add(weights, said, self._before.weights)

    def finish(self) -> ModelState | Unfit:
        """Return the next global model, or why there is none."""
        token = self._combine.token
        if self._refusals:
            return Unfit(combines=token, refusals=tuple(self._refusals))
        made = self._aggregator.finish(self._before)
        if isinstance(made, Publication):
            return made.weights
        return Unfit(combines=token, reason=made)

    def _published(self, before: ModelState) -> Publication:
        path = self._spool.unfinished("before")
        stream = fill_file(path, file_bytes(self._layout), pack(before))
        name = self._spool.model(stream)
        self._spool.put(path, name)
        return self._aggregator.published(name, stream)


@contextmanager
def _emptied(folder: Path) -> Generator[Path]:
    """Leave nothing in a folder, and find nothing there: models lie in it, unsealed."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def take_turn(
    combine: Combine,
    *,
    plan: Plan,
    layout: Layout,
    envelope: Envelope,
    fetching: Fetching,
    folder: Path,
) -> ModelState | Unfit | ToSite:
    """Return the next global model, why there is none, or what came instead.

    Args:
        combine: What the server asks for.
        plan: Of the run.
        layout: Of the global model.
        envelope: Opens what arrives.
        fetching: Gets it.
        folder: For one with the updates and the model, meanwhile: it needs room for
            all.  What a process left that was killed in its turn, is removed.
    """
    file = fetching.model(combine.model)
    if not isinstance(file, memoryview):
        return file
    with _emptied(folder / f"turn-{envelope.name}") as own:
        spool = Spool(own)
        spool.make()
        turn = Turn(
            plan,
            layout,
            envelope=envelope,
            combine=combine,
            before=envelope.opened(file, combine.model.round_number),
            spool=spool,
        )
        for part in combine.parts:
            update = fetching.stream(part.stream, part.num_bytes)
            if not isinstance(update, memoryview):
                return update
            turn.take(part, update)
        return turn.finish()
