"""What goes down to a site each round, and what comes back."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat, final

from flare_core._model._state import ModelState

Metrics = Mapping[str, float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalModel:
    """The model a round starts from, or the last one.

    Attributes:
        round_number: The round it starts, counted from 0; for the final model, the
            number of rounds played.
        weights: Its values.
        final: Whether no round follows: load it and stop.
    """

    round_number: int
    weights: ModelState
    final: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one site returns for one round.

    Attributes:
        site: Name of the site, unique in the federation.
        round_number: The round it answers, counted from 0.
        weights: The local model after training, with the layout of the global one.
        num_examples: Examples really seen in local training (samples, or label
            tokens of a causal language model); the aggregation weight.
        metrics: Scalars of the local model after training.
        global_metrics: Scalars of the global model that the round started from.

    Raises:
        TypeError: If the number of examples is no integer, or a metric no number;
            NumPy's and torch's scalars are taken as Python's.
    """

    site: str
    round_number: int
    weights: ModelState
    num_examples: int
    metrics: Metrics = field(default_factory=dict[str, float])
    global_metrics: Metrics = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # frozen, and Python's own types from here on
        set_field(self, "num_examples", _integer(self.site, self.num_examples))
        set_field(self, "metrics", as_scalars(self.metrics))
        set_field(self, "global_metrics", as_scalars(self.global_metrics))


def as_scalars(metrics: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Return metrics as Python's floats.

    Raises:
        TypeError: If one is no number; it is named.
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as exc:
            kind = type(value).__name__
            msg = f"metric {name!r}: expected one number, got {value!r} ({kind})"
            raise TypeError(msg) from exc
    return found


def _integer(site: str, num_examples: int) -> int:
    try:
        return operator.index(num_examples)
    except TypeError as exc:
        kind = type(num_examples).__name__
        msg = (
            f"site {site!r}: num_examples: expected an integer, got {num_examples!r} "
            f"({kind}); count the examples, do not estimate them"
        )
        raise TypeError(msg) from exc
