"""What goes down to a site each round, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

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
    """

    site: str
    round_number: int
    weights: ModelState
    num_examples: int
    metrics: Metrics = field(default_factory=dict[str, float])
    global_metrics: Metrics = field(default_factory=dict[str, float])
