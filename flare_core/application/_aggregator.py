"""Makes the next global model of the updates of a round, from file to file."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import final

import numpy as np

from flare_core._model import (
    DTYPES,
    Array,
    Layout,
    ModelState,
    TensorClass,
    accumulator_dtype,
    all_finite,
    rounded_once,
)
from flare_core._plan import Plan
from flare_core.application._lora_factors import LoraFactors, OverflowedError
from flare_core.application._moments import Moments
from flare_core.application._publication import Publication, Publisher
from flare_core.application._spool import Spool
from flare_core.communication import (
    Frame,
    body,
    file_bytes,
    fill_file,
    header,
    scratch,
)
from flare_core.federation import (
    Aggregation,
    Combining,
    Contribution,
    Each,
    Part,
    Strategy,
    batches,
    combining,
)

_CENTRE = "aggregation.centre"
"""The moment that is the step of the last round."""


@final
class Aggregator:
    """Has the updates of each round combined, and the strategy move the model.

    Models stream past, part by part; only the sums of a mean are held, once for the
    whole run.

    Args:
        plan: Names the strategy, the aggregation and the encoding, and says how LoRA
            weights are combined.
        layout: Of the global model.
        strategy: Moves the model, by what comes of the updates.
        rule: Says what comes of them.
        spool: For the sums and the models.
        each: Shares the parts among the cores.

    Attributes:
        blocks: Whether it waits for others.
    """

    blocks = False

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        *,
        strategy: Strategy,
        rule: Aggregation,
        spool: Spool,
        each: Each,
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._strategy = strategy
        self._rule = rule
        self._publisher = Publisher(layout, plan.encoding, spool)
        self._each = each
        self._spool = spool
        self._memory = cache(partial(scratch, spool.folder))  # one for all rounds
        self._batches = tuple(batches(layout))
        self._updates = self._none_yet()
        self._lora = LoraFactors(plan, layout, strategy, spool.folder, each)

    def published(self, path: Path, stream: bytes) -> Publication:
        """Publish a model that has its file already.

        Args:
            path: Its file.
            stream: The XXH3-128 of the file.
        """
        return self._publisher.first(path, stream)

    def first(self, path: Path, stream: bytes) -> Publication:
        """Publish the model that a run starts from; as `published`."""
        return self.published(path, stream)

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Add the next update in the cohort's order.

        Args:
            weights: The local model.
            update: What is said of it.
            before: The model that the round started from.
        """
        self._updates.add(weights, update, before)
        self._lora.add(weights, update)

    def begin_anew(self) -> None:
        """Forget the updates that were added."""
        self._updates = self._none_yet()
        self._lora.begin_anew()

    def finish(self, before: Publication) -> Publication | str:
        """Write and publish the next global model, and begin anew.

        Args:
            before: The model that the round started from.

        Returns:
            The model; or why there is none, if there are too few updates or the
            strategy made it infinite.

        Raises:
            ConfigurationError: If there is no room for it, or what the strategy
                remembers is of another one.
        """
        path = self._spool.unfinished("model")
        try:
            lora = self._lora.combine()
            with self._moments(before) or nullcontext() as moments:
                start = _Start(before.weights, moments, follows=self._rule.follows)
                reason = self._updates.complete(start.centre)
                if reason:
                    return f"aggregation {self._plan.aggregation.name!r}: {reason}"
                frames = self._frames(start)
                stream = fill_file(path, file_bytes(self._layout), frames)
        except OverflowedError as exc:
            return str(exc)
        except _DivergedError as exc:
            return (
                f"strategy {self._plan.strategy.name!r} made tensor {exc.name!r}, or "
                "what it remembers of it, infinite or not a number: its steps are too "
                "long; lower its learning rate under [strategy.settings], or that of "
                "the sites"
            )
        finally:
            self.begin_anew()
        published = self._publisher.next(path, stream, before)
        return replace(published, memory=moments and moments.finish(), lora=lora)

    def _none_yet(self) -> Combining:
        return combining(
            self._rule,
            self._strategy,
            self._layout,
            self._memory,
            self._each,
            num_sites=self._plan.selection.sites,
            by_region=self._plan.by_region,
        )

    def _moments(self, before: Publication) -> Moments | None:
        """Return what is remembered of the round before, if anything is."""
        initial = dict(self._strategy.moments)
        if self._rule.follows:
            initial[_CENTRE] = 0.0
        if not initial:
            return None
        return Moments(self._layout, initial, before.memory, self._spool)

    def _frames(self, start: "_Start") -> Iterator[Frame]:
        yield header(self._layout.tensors)

        def step(batch: Sequence[Part]) -> list[Frame]:
            return [self._frame(part, start) for part in batch]

        for batch in self._each(step, self._batches):
            yield from batch

    def _frame(self, part: Part, start: "_Start") -> Frame:
        with np.errstate(over="ignore", invalid="ignore"):  # it is looked at next
            values = self._next(part, start)
        if not all_finite(values):
            raise _DivergedError(part.spec.name)
        return body(part.spec, values)

    def _next(self, part: Part, start: "_Start") -> Array:
        factor = self._lora.of(part)
        combined = self._updates.of(part, start.centre) if factor is None else factor
        if part.spec.kind is TensorClass.COUNTER:
            return combined
        if part.spec.kind is TensorClass.PARAMETER:
            combined = self._step(part, start, combined)
        return rounded_once(np.asarray(combined), DTYPES[part.spec.dtype])

    def _step(self, part: Part, start: "_Start", combined: Array) -> Array:
        current, moments = part.of(start.weights), start.moments
        if moments is None:
            return self._strategy.step(part, current, combined, {})
        remembered = moments.of(part)
        if self._rule.follows:
            remembered[_CENTRE] = combined - current
        moved = self._strategy.step(part, current, combined, remembered)
        if not moments.keep(part, remembered):
            raise _DivergedError(part.spec.name)
        return moved


@final
@dataclass(frozen=True, slots=True)
class _Start:
    """What a round goes on from.

    Attributes:
        weights: The global model.
        moments: What is remembered, if anything is.
        follows: Whether steps begin where the step of the last round leads once more.
    """

    weights: ModelState
    moments: Moments | None
    follows: bool

    def centre(self, part: Part) -> Array:
        """Return where steps begin, in the type in which they are combined."""
        wide = accumulator_dtype(DTYPES[part.spec.dtype])
        centre: Array = part.of(self.weights).astype(wide)
        if self.follows and part.spec.kind is TensorClass.PARAMETER:
            assert self.moments is not None  # noqa: S101 - the centre is one of them
            centre += self.moments.of(part)[_CENTRE]
        return centre


@final
class _DivergedError(Exception):
    """A strategy made a tensor infinite."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
