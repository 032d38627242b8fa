"""Metrics as a server takes them: one number each."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are one number each, without those that are NaN."""
    found = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}
