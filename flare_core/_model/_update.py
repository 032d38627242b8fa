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
        counted: The last round that an update of this site counted in, -1 if none did;
            None if that is not known.
    """

    round_number: int
    weights: ModelState
    final: bool = False
    counted: int | None = None


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
        num_steps: Optimizer steps of local training; 0 if nobody counted them.
        metrics: Scalars of the local model after training.
        global_metrics: Scalars of the global model that the round started from.

    Raises:
        TypeError: If the number of examples or steps is no integer, or a metric no
            number; NumPy's and torch's scalars are taken as Python's.
    """

    site: str
    round_number: int
    weights: ModelState
    num_examples: int
    num_steps: int = 0
    metrics: Metrics = field(default_factory=dict[str, float])
    global_metrics: Metrics = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # frozen, and Python's own types from here on
        for count in ("num_examples", "num_steps"):
            set_field(self, count, _integer(self.site, count, getattr(self, count)))
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


def _integer(site: str, what: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as exc:
        msg = (
            f"site {site!r}: {what}: expected an integer, got {value!r} "
            f"({type(value).__name__}); count, do not estimate"
        )
        raise TypeError(msg) from exc
