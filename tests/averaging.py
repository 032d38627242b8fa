"""Puts models together from the parts that a fold is worked on in."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flare_core import (
    DTYPES,
    Aggregation,
    Contribution,
    Layout,
    ModelState,
    Plan,
    Selection,
    Strategy,
    TensorClass,
)
from flare_core._model import Array, rounded_once
from flare_core.application._aggregator import Aggregator
from flare_core.application._spool import Spool
from flare_core.communication import file_bytes, pack, write_file
from flare_core.federation import Each, Fold, LoraReport, Mean, Part


def mean_of(fold: Fold, layout: Layout) -> ModelState:
    """Return the mean of what was added, in the types of the model."""
    return assembled(fold, layout, fold.mean)


def assembled(fold: Fold, layout: Layout, of: Callable[[Part], Array]) -> ModelState:
    """Return the model of these values, each rounded once; counters as they are."""
    pieces = {
        spec.name: [np.zeros(0, DTYPES[spec.dtype])] for spec in layout.tensors
    }  # some tensors have no element, and no part
    for batch in fold.batches:
        for part in batch:
            pieces[part.spec.name].append(_in_type(part, of(part)))
    arrays = {
        spec.name: np.concatenate(pieces[spec.name]).reshape(spec.shape)
        for spec in layout.tensors
    }
    return ModelState(arrays, classes=layout.classes)


def _in_type(part: Part, values: Array) -> Array:
    if part.spec.kind is TensorClass.COUNTER:
        return values
    return rounded_once(np.asarray(values), DTYPES[part.spec.dtype])


def _contribution(said: int | Contribution) -> Contribution:
    if isinstance(said, int):
        return Contribution(site="a", num_examples=said)
    return said


class DivergedError(Exception):
    """A strategy made a model infinite."""


class Averaging:
    """Rounds by the server's own aggregator, with no server around it.

    Args:
        folder: For the models and what the strategy remembers; empty.
        strategy: What moves the model.
        first: The model that is started from.
        rule: What combines the updates; by default their mean.
        each: Shares the parts among threads.
        num_sites: Sites of the run.
        plan: What is played; by default a round of these sites.

    Attributes:
        current: The global model, with its files.
    """

    def __init__(
        self,
        folder: Path,
        strategy: Strategy,
        first: Mapping[str, npt.ArrayLike],
        each: Each = map,
        *,
        rule: Aggregation | None = None,
        num_sites: int = 1,
        plan: Plan | None = None,
    ) -> None:
        model = ModelState(first)
        sites = Selection(sites=num_sites)
        spool = Spool(folder)
        spool.make()
        self._new = partial(
            Aggregator,
            plan or Plan(rounds=1, selection=sites),
            model.layout,
            strategy=strategy,
            rule=rule or Mean(),
            spool=spool,
            each=each,
        )
        self._aggregator = self._new()
        path = folder / "first.safetensors"
        stream = write_file(path, file_bytes(model.layout), pack(model))
        self.current = self._aggregator.first(path, stream)

    @property
    def model(self) -> ModelState:
        """The global model."""
        return self.current.weights

    @property
    def lora(self) -> LoraReport | None:
        """How its LoRA weights were combined."""
        return self.current.lora

    def restart(self) -> None:
        """Go on with what is in the files, as another server would."""
        before, self._aggregator = self.current, self._new()
        again = self._aggregator.first(before.model.path, before.model.stream)
        self.current = replace(again, memory=before.memory)

    def play(
        self, *updates: tuple[Mapping[str, npt.ArrayLike], int | Contribution]
    ) -> ModelState:
        """Average weights with their numbers of examples; return the next model.

        Raises:
            DivergedError: If what came out is none.
        """
        for weights, said in updates:
            whole = ModelState(weights, classes=self.model.layout.classes)
            self._aggregator.add(whole, _contribution(said), self.model)
        outcome = self._aggregator.finish(self.current)
        if isinstance(outcome, str):
            raise DivergedError(outcome)
        self.current = outcome
        return self.model
