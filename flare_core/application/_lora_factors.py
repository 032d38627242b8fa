"""The LoRA factors of the next model, module by module from all updates of a round."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np

from flare_core._model import Array, Layout, ModelState
from flare_core._plan import Plan
from flare_core.communication import scratch
from flare_core.federation import (
    Contribution,
    Each,
    LoraReport,
    Losses,
    Pair,
    Part,
    Strategy,
    lora_report,
    lora_rule,
    pairs_of,
)

_log = logging.getLogger(__name__)


@final
class LoraFactors:
    """Combines them where the mean of each tensor by itself is not what is wanted.

    The updates stay where they are, mapped; what comes out is in a scratch file, in
    float64, until the model is written.

    Args:
        plan: Says how they are combined.
        layout: Of the global model.
        strategy: Weighs the updates, and moves the model.
        folder: For the scratch file.
        each: Shares the modules among the cores.
    """

    def __init__(
        self, plan: Plan, layout: Layout, strategy: Strategy, folder: Path, each: Each
    ) -> None:
        pairs = pairs_of(layout)
        self._strategy = strategy
        self._rule = lora_rule(plan, strategy)
        if pairs and (why := self._rule.instead_of):
            _log.warning("LoRA weights are combined factor by factor: %s", why)
        # else there are no means of single updates that could be measured
        measured = plan.aggregation.name == "mean" and not plan.by_region
        self._pairs = pairs if measured else ()
        self._folder = folder
        self._each = each
        self._updates: list[ModelState] = []
        self._weights: list[float] = []
        self._combined: dict[str, Array] = {}

    def add(self, weights: ModelState, update: Contribution) -> None:
        """Take the next update, in the cohort's order.

        Args:
            weights: The local model.
            update: What is said of it.
        """
        if self._pairs:
            self._updates.append(weights)
            self._weights.append(self._strategy.weight(update))

    def begin_anew(self) -> None:
        """Forget the updates that were added."""
        self._updates.clear()
        self._weights.clear()

    def combine(self) -> LoraReport | None:
        """Combine what was added; None if the model has no LoRA weights.

        Raises:
            OverflowedError: If the weights are too large.
        """
        if not self._pairs:
            return None
        if not (self._rule.by_factor or self._combined):
            self._combined = dict(self._room())
        losses = dict(self._each(self._combine, self._pairs))
        return lora_report(self._rule.name, losses)

    def of(self, part: Part) -> Array | None:
        """Return a part of what was combined; None if its mean is what is wanted."""
        combined = self._combined.get(part.spec.name)
        return None if combined is None else combined[part.start : part.stop]

    def _combine(self, pair: Pair) -> tuple[str, Losses]:
        updates = [pair.of(weights) for weights in self._updates]
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                factors, losses = self._rule.combine(updates, self._weights)
        except np.linalg.LinAlgError as exc:
            raise OverflowedError(pair) from exc
        if not math.isfinite(losses.energy):
            raise OverflowedError(pair)
        if self._combined:
            self._combined[pair.b.name][...] = factors.b.reshape(-1)
            self._combined[pair.a.name][...] = factors.a.reshape(-1)
        return pair.module, losses

    def _room(self) -> Iterator[tuple[str, Array]]:
        """Yield where the factors of each tensor go, the same in every round."""
        specs = [spec for pair in self._pairs for spec in (pair.a, pair.b)]
        size = np.dtype(np.float64).itemsize
        memory = scratch(self._folder, size * sum(one.num_elements for one in specs))
        offset = 0
        for spec in specs:
            end = offset + size * spec.num_elements
            yield spec.name, np.frombuffer(memory[offset:end], np.float64)
            offset = end


@final
class OverflowedError(Exception):
    """The factors of a module are too large to be multiplied."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(
            f"the LoRA weights of module {pair.module!r} are too large to be "
            "multiplied: the local training of a site diverged; lower the learning "
            "rate of the sites"
        )
