"""What does not go together with a strategy or an aggregation, and why."""

from dataclasses import dataclass, field
from typing import final

from flare_core._local import FedDyn, Scaffold
from flare_core._pairs import Pair
from flare_core._plan import Plan
from flare_core._topology import Asynchronous
from flare_core.federation._aggregation import Aggregation, Mean
from flare_core.federation._staleness import staleness_of
from flare_core.federation._strategy import Strategy
from flare_core.federation._weighting import QFedAvg

AGGREGATION = "another aggregation than 'mean'"
FACTORS = "LoRA weights combined as products"
INSTEAD = "factor by factor, with a warning; refused if lora.aggregate names a way"


@final
@dataclass(frozen=True, slots=True)
class Choices:
    """What a plan has chosen.

    Attributes:
        plan: The plan.
        strategy: Moves the model.
        rule: Says what comes of the updates.
    """

    plan: Plan
    strategy: Strategy
    rule: Aggregation = field(default_factory=Mean)

    @property
    def corrects(self) -> bool:
        """Whether gradients are corrected by what a site keeps."""
        return isinstance(self.plan.local, Scaffold | FedDyn)

    @property
    def combines(self) -> bool:
        """Whether the updates are not simply averaged."""
        return not isinstance(self.rule, Mean)

    @property
    def weighs(self) -> bool:
        """Whether the strategy has weights of its own."""
        kind = type(self.strategy)
        return kind.weight != Strategy.weight or kind.reach != Strategy.reach

    @property
    def goes_on(self) -> bool:
        """Whether the strategy goes on from steps of earlier rounds, or beyond."""
        kind = type(self.strategy)
        return kind.step is not Strategy.step or kind.reach is not Strategy.reach


PAIRS: tuple[Pair[Choices], ...] = (
    Pair(
        AGGREGATION,
        "local.name = 'scaffold' or 'feddyn'",
        "that is right with the mean of all sites only",
        lambda chosen: chosen.combines and chosen.corrects,
    ),
    Pair(
        AGGREGATION,
        "topology.name = 'hierarchical'",
        "it looks at each update, and those of a region are added up",
        lambda chosen: chosen.combines and chosen.plan.by_region,
    ),
    Pair(
        AGGREGATION,
        "a strategy with weights of its own, such as 'fednova'",
        "it does not weigh the updates as the strategy wants it",
        lambda chosen: chosen.combines and chosen.weighs,
    ),
    Pair(
        "strategy 'qfedavg' with settings.from_round",
        "round.late_weight, or topology.name = 'async'",
        "an update of a round that needs no loss would count in one that does",
        lambda chosen: (
            isinstance(chosen.strategy, QFedAvg)
            and chosen.strategy.measures
            and chosen.strategy.from_round > 0
            and staleness_of(chosen.plan).most > 0
        ),
    ),
    Pair(
        "topology.name = 'swarm'",
        "a strategy or aggregation with memory, such as 'fedadam'",
        "another site goes on each time, which has not what it remembers",
        lambda chosen: (
            chosen.plan.sealed and bool(chosen.strategy.moments or chosen.rule.follows)
        ),
    ),
    Pair(
        "lora.rank, or a lora.aggregate that changes what sites train or exchange",
        "local.name = 'scaffold' or 'feddyn'",
        "it keeps a correction of each weight",
        lambda chosen: chosen.plan.lora.concerns_sites and chosen.corrects,
    ),
)
"""What is refused."""

LORA_PAIRS: tuple[Pair[Choices], ...] = (
    Pair(
        FACTORS,
        "a strategy that does more than average, such as 'fedavgm' or 'fednova'",
        "it goes on from factors of the round before",
        lambda chosen: chosen.goes_on,
        INSTEAD,
    ),
    Pair(
        FACTORS,
        AGGREGATION,
        "it compares the factors of the sites",
        lambda chosen: chosen.plan.aggregation.name != "mean",
        INSTEAD,
    ),
    Pair(
        FACTORS,
        "local.name = 'scaffold' or 'feddyn'",
        "it corrects steps by earlier factors",
        lambda chosen: chosen.corrects,
        INSTEAD,
    ),
    Pair(
        FACTORS,
        "encoding.up = 'topk'",
        "it adds what it left out of earlier factors",
        lambda chosen: chosen.plan.encoding.up == "topk",
        INSTEAD,
    ),
    Pair(
        FACTORS,
        "encoding.down that rounds",
        "it rounds what changed in earlier factors",
        lambda chosen: chosen.plan.encoding.down not in {"none", "xor"},
        INSTEAD,
    ),
    Pair(
        FACTORS,
        "round.late_weight",
        "it counts steps that were taken from earlier factors",
        lambda chosen: chosen.plan.round.late_weight is not None,
        INSTEAD,
    ),
    Pair(
        FACTORS,
        "topology.name = 'async'",
        "it counts steps that were taken from earlier factors",
        lambda chosen: isinstance(chosen.plan.topology, Asynchronous),
        INSTEAD,
    ),
    Pair(
        FACTORS,
        "topology.name = 'hierarchical'",
        "it adds up each factor by region",
        lambda chosen: chosen.plan.by_region,
        INSTEAD,
    ),
)
"""What is done in another way."""
