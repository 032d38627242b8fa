"""Compares the global models of a run by a metric of its sites."""

import math
from dataclasses import dataclass
from typing import final

from flare_core._model import Metrics
from flare_core._stop import Stop


@final
@dataclass(frozen=True, slots=True)
class Score:
    """How good a global model is.

    Attributes:
        number: The round that starts from it, or the number of rounds played.
        value: Of the metric.
    """

    number: int
    value: float


@final
class Scores:
    """The global models so far, in order.

    Args:
        stop: The plan's word.

    Attributes:
        best: The best of them, the first one of those that are equal; None while no
            site has reported the metric.
        reason: Why no round follows any more; empty while one does.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._in_vain = 0
        self.best: Score | None = None
        self.reason = ""

    def add(self, number: int, metrics: Metrics) -> bool:
        """Take what the sites say of a model; return whether it is the best so far.

        Where none of them reports the metric, nothing is known of the model: it is
        neither better nor in vain.
        """
        name = self._stop.metric
        value = None if name is None else metrics.get(name)
        if value is None:
            return False
        better = self.best is None or self._better(value, self.best.value)
        if better:
            self.best, self._in_vain = Score(number, value), 0
        else:
            self._in_vain += 1
        self.reason = self._why_over(value)
        return better

    def _better(self, one: float, other: float) -> bool:
        return one < other if self._stop.mode == "min" else one > other

    def _why_over(self, value: float) -> str:
        stop = self._stop
        target = math.nan if stop.target is None else stop.target
        if value == target or self._better(value, target):
            return f"{stop.metric} is {value:.6g}, and the target {target:.6g}"
        if stop.patience is not None and self._in_vain >= stop.patience:
            best = "" if self.best is None else f", {self.best.value:.6g}"
            return (
                f"{self._in_vain} models, one after the other, were not better than "
                f"the best {stop.metric}{best}"
            )
        return ""
