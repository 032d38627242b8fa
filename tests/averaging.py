"""Puts models together from the parts that a fold is worked on in."""

from collections.abc import Callable

import numpy as np

from flare_core import DTYPES, Layout, ModelState, TensorClass
from flare_core._model import Array, rounded_once
from flare_core.federation import Fold, Part


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
