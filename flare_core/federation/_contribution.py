"""What a site says of its update, beside the weights."""

from dataclasses import dataclass, field
from typing import final

from flare_core._model import Metrics


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What an update is weighed by.

    Attributes:
        site: Whose it is.
        round_number: The round that it counts in.
        num_examples: Examples seen in local training.
        num_steps: Optimizer steps of local training; 0 if the site does not say.
        metrics: Of the local model.
        global_metrics: Of the global model that the round started from, at the site.
        squared_norm: Square of the L2 distance that its parameters are from that model;
            0 unless `Strategy.measures` says that it is needed.
        members: What the sum was made of that a region hands in; empty if it is the
            update of one site.
        weight: How much these weigh together, as it was added up there: added in
            another order, it might have other bits.
    """

    site: str
    round_number: int = 0
    num_examples: int
    num_steps: int = 0
    metrics: Metrics = field(default_factory=dict[str, float])
    global_metrics: Metrics = field(default_factory=dict[str, float])
    squared_norm: float = 0.0
    members: tuple["Contribution", ...] = ()
    weight: float = 0.0
