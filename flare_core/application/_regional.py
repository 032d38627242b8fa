"""Makes the next global model of a region's updates: by the server above."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import final

import xxhash

from flare_core._errors import RefusedError, RunAbortedError
from flare_core._model import GlobalModel, Layout, ModelState
from flare_core._plan import Plan
from flare_core.application._above import Above
from flare_core.application._publication import Publication, Publisher
from flare_core.application._spool import Spool
from flare_core.communication import (
    Frame,
    Join,
    body,
    file_bytes,
    fill_file,
    header,
    mapped,
    pack,
    scratch,
    unpack,
)
from flare_core.federation import (
    Averaged,
    Contribution,
    Each,
    Part,
    Strategy,
    batches,
)


@final
class RegionalAggregator:
    """Has the updates of each round added up, and the sum handed in above.

    What comes back is the next global model, the same bits as everywhere.

    Args:
        plan: Of the region's run; see `plan_below`.
        layout: Of the global model.
        strategy: Weighs the updates.
        above: The server above.
        opened: Returns what the region's sites would exchange.
        spool: For the sums and the models.
        each: Shares the parts among the cores.

    Attributes:
        blocks: Whether it waits for others, so that no thread but one of its own may
            call it.
    """

    blocks = True

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        *,
        strategy: Strategy,
        above: Above,
        opened: Callable[[], Join],
        spool: Spool,
        each: Each,
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._strategy = strategy
        self._above = above
        self._opened = opened
        self._spool = spool
        self._each = each
        self._publisher = Publisher(layout, plan.encoding, spool)
        self._memory = cache(partial(scratch, spool.folder))  # one for all rounds
        self._updates = self._none_yet()

    def published(self, path: Path, stream: bytes) -> Publication:
        """Publish a model that has its file already."""
        return self._publisher.first(path, stream)

    def first(self, path: Path, stream: bytes) -> Publication | str:
        """Join the run above, with what this one would start from.

        Returns:
            The model that it starts from; or why it may not.
        """
        before = self.published(path, stream)
        try:
            _ = self._layout.of_sums
        except ValueError as exc:
            return str(exc)
        try:
            model = self._join(before)
        except (RunAbortedError, RefusedError) as exc:
            return f"the server above: {exc}"
        return self._publish(model, before)

    def rejoin(self, before: Publication) -> None:
        """Join again, after this server was started again, in the middle of a round.

        Args:
            before: The model that the round has started from.
        """
        self._join(before)

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Add the next update in the cohort's order; see `Aggregator`."""
        self._updates.add(weights, update, before)

    def begin_anew(self) -> None:
        """Forget the updates that were added."""
        self._updates = self._none_yet()

    def finish(self, before: Publication) -> Publication | str:
        """Hand in the sum, and publish what comes back.

        A sum that the run above waits for no more, as this server was away, is dropped,
        and the model that is newest there comes next.

        Args:
            before: The model that the round started from.

        Returns:
            The model; or why the run above has ended, or goes on without this region.

        Raises:
            ServerUnreachableError: If nobody answers above.
        """
        self._updates.complete(lambda part: part.of(before.weights))
        try:
            model = self._above.model or self._join(before)
            if not model.final and _stream_of(model) == before.model.stream:
                updates = self._updates
                weight = updates.tally.total.parameters
                model = self._above.hand_in(self._sums(), updates.updates, weight)
        except (RunAbortedError, RefusedError) as exc:
            return f"the server above: {exc}"
        finally:
            self.begin_anew()
        return self._publish(model, before)

    def _join(self, before: Publication) -> GlobalModel:
        return self._above.join(before.weights, self._opened())

    def _publish(self, model: GlobalModel, before: Publication) -> Publication:
        path = self._spool.unfinished("model")
        frames = pack(model.weights)
        stream = fill_file(path, file_bytes(self._layout), frames)
        published = self._publisher.next(path, stream, before)
        return replace(published, final=model.final)

    def _sums(self) -> ModelState:
        """Return the sums of the round, in a file that is overwritten by the next."""
        layout = self._layout.of_sums
        path = self._spool.unfinished("sums")
        fill_file(path, file_bytes(layout), self._frames(layout))
        return unpack(mapped(path), classes=layout.classes)

    def _frames(self, layout: Layout) -> Iterator[Frame]:
        yield header(layout.tensors)
        of_model = {spec.name: spec for spec in self._layout.tensors}

        def frames(batch: Sequence[Part]) -> list[Frame]:
            found: list[Frame] = []
            for part in batch:
                own = replace(part, spec=of_model[part.spec.name])
                found.append(body(part.spec, self._updates.sum_of(own)))
            return found

        for batch in self._each(frames, batches(layout)):
            yield from batch

    def _none_yet(self) -> Averaged:
        return Averaged(
            self._layout,
            self._strategy,
            self._memory,
            self._each,
            num_sites=self._plan.selection.sites,
            by_region=True,
        )


def _stream_of(model: GlobalModel) -> bytes:
    """Return the XXH3-128 of a model's file."""
    digest = xxhash.xxh3_128()
    for frame in pack(model.weights):
        digest.update(frame)
    return digest.digest()
