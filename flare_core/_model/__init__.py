"""The values that travel: models, their layouts, and updates."""

from flare_core._model._dtypes import (
    DTYPES,
    Array,
    accumulator_dtype,
    all_finite,
    bits_of,
    rounded_once,
    shifted,
    squared_distance,
)
from flare_core._model._layout import (
    Layout,
    TensorClass,
    TensorSpec,
    in_wire_order,
)
from flare_core._model._state import ModelState
from flare_core._model._update import GlobalModel, Metrics, Update, as_scalars

__all__ = [
    "DTYPES",
    "Array",
    "GlobalModel",
    "Layout",
    "Metrics",
    "ModelState",
    "TensorClass",
    "TensorSpec",
    "Update",
    "accumulator_dtype",
    "all_finite",
    "as_scalars",
    "bits_of",
    "in_wire_order",
    "rounded_once",
    "shifted",
    "squared_distance",
]
