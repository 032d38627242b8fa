"""Folds the updates of a round from their files into that of the next global model."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from flare_core._model import (
    DTYPES,
    Array,
    Layout,
    ModelState,
    TensorClass,
    all_finite,
    rounded_once,
    squared_distance,
)
from flare_core._plan import Plan
from flare_core.application._moments import Moments
from flare_core.application._publication import Publication, Publisher
from flare_core.application._spool import Spool
from flare_core.communication import (
    Frame,
    body,
    file_bytes,
    header,
    scratch,
    write_file,
)
from flare_core.federation import Contribution, Each, Fold, Part, Strategy


@final
class Aggregator:
    """Holds the sums, once for the whole run; all else streams past, part by part.

    Args:
        plan: Names the strategy and the encoding.
        layout: Of the global model.
        strategy: Moves the model, by the mean of the updates.
        spool: For the sums and the models.
        each: Shares the parts among the cores.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        strategy: Strategy,
        spool: Spool,
        each: Each,
    ) -> None:
        self._layout = layout
        self._strategy = strategy
        self._name = plan.strategy.name
        self._publisher = Publisher(layout, plan.encoding, spool.folder)
        self._each = each
        self._spool = spool
        self._sums: memoryview | None = None
        self._fold = Fold(layout, self._memory)
        self._updates: list[Contribution] = []

    def first(self, path: Path, stream: bytes) -> Publication:
        """Publish the model that the run starts from.

        Args:
            path: Its file.
            stream: The XXH3-128 of the file.
        """
        return self._publisher.first(path, stream)

    def add(
        self, weights: ModelState, update: Contribution, before: ModelState
    ) -> None:
        """Add the next update in the cohort's order.

        Args:
            weights: The local model.
            update: What is said of it.
            before: The model that the round started from.
        """
        weight = self._strategy.weight(update)
        self._fold.add(weights, update.num_examples, self._each, weight=weight)
        if self._strategy.measures:
            norm = self._squared_norm(weights, before)
            update = replace(update, squared_norm=norm)
        self._updates.append(update)

    def begin_anew(self) -> None:
        """Forget the updates that were added."""
        self._fold = Fold(self._layout, self._memory)
        self._updates.clear()

    def finish(self, before: Publication, number: int) -> Publication | str:
        """Write and publish the next global model, and begin anew.

        Args:
            before: The model that the round started from.
            number: Of the round that starts from the new one.

        Returns:
            The model; or why there is none, if the strategy made it infinite.

        Raises:
            ConfigurationError: If there is no room for it, or what the strategy
                remembers is of another one.
        """
        path = self._spool.model(number)
        try:
            with self._moments(before, number) or nullcontext() as moments:
                reach = self._strategy.reach(self._updates)
                frames = self._frames(_Start(before.weights, reach, moments))
                stream = write_file(path, file_bytes(self._layout), frames)
        except _DivergedError as exc:
            return (
                f"strategy {self._name!r} made tensor {exc.name!r}, or what it "
                "remembers of it, infinite or not a number: its steps are too long; "
                "lower its learning rate under [strategy.settings], or that of the "
                "sites"
            )
        finally:
            self.begin_anew()
        published = self._publisher.next(path, stream, before)
        return replace(published, memory=moments and moments.finish())

    def _moments(self, before: Publication, number: int) -> Moments | None:
        """Return what the strategy remembers, if it does."""
        initial = self._strategy.moments
        if not initial:
            return None
        path = self._spool.memory(number)
        return Moments(self._layout, initial, before.memory, path)

    def _memory(self, num_bytes: int) -> memoryview:
        """Return the memory of the sums, the same in every round."""
        if self._sums is None:
            self._sums = scratch(self._spool.folder, num_bytes)
        return self._sums

    def _squared_norm(self, weights: ModelState, before: ModelState) -> float:
        def squares(batch: Sequence[Part]) -> list[float]:
            return [
                squared_distance(part.of(weights), part.of(before))
                for part in batch
                if part.spec.kind is TensorClass.PARAMETER
            ]

        each = self._each(squares, self._fold.batches)
        # Not fsum: a round may not end with the infinite updates of two of its sites.
        return sum(itertools.chain.from_iterable(each))

    def _frames(self, start: "_Start") -> Iterator[Frame]:
        yield header(self._layout.tensors)

        def step(batch: Sequence[Part]) -> list[Frame]:
            return [self._frame(part, start) for part in batch]

        for batch in self._each(step, self._fold.batches):
            yield from batch

    def _frame(self, part: Part, start: "_Start") -> Frame:
        values = self._next(part, start)
        if not all_finite(values):
            raise _DivergedError(part.spec.name)
        return body(part.spec, values)

    def _next(self, part: Part, start: "_Start") -> Array:
        mean = self._fold.mean(part)
        if part.spec.kind is TensorClass.COUNTER:
            return mean
        if part.spec.kind is TensorClass.PARAMETER:
            with np.errstate(over="ignore", invalid="ignore"):  # it is looked at next
                mean = self._step(part, start, mean)
        return rounded_once(np.asarray(mean), DTYPES[part.spec.dtype])

    def _step(self, part: Part, start: "_Start", mean: Array) -> Array:
        current, moments = part.of(start.weights), start.moments
        if start.reach != 1:
            mean = current + start.reach * (mean - current)
        if moments is None:
            return self._strategy.step(part, current, mean, {})
        remembered = moments.of(part)
        moved = self._strategy.step(part, current, mean, remembered)
        if not moments.keep(part, remembered):
            raise _DivergedError(part.spec.name)
        return moved


@final
@dataclass(frozen=True, slots=True)
class _Start:
    """What a round goes on from.

    Attributes:
        weights: The global model.
        reach: How far to go from it, toward the mean.
        moments: What the strategy remembers, if it does.
    """

    weights: ModelState
    reach: float
    moments: Moments | None


@final
class _DivergedError(Exception):
    """A strategy made a tensor infinite."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
