"""The rules of a federation, pure: no socket, file, thread or clock."""

from flare_core.federation._adaptive import FedAdagrad, FedAdam, FedYogi
from flare_core.federation._admission import (
    differing_bases,
    differing_layouts,
    differing_schedules,
    inadmissible,
    misfit,
    unfit,
    weighted_mean,
)
from flare_core.federation._choice import GROUP, strategy_class, strategy_of
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Fold, Part
from flare_core.federation._momentum import DiLoCo, FedAvgM
from flare_core.federation._round import Round
from flare_core.federation._strategy import FedAvg, Strategy
from flare_core.federation._weighting import FedNova, QFedAvg

__all__ = [
    "GROUP",
    "Contribution",
    "DiLoCo",
    "Each",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedNova",
    "FedYogi",
    "Fold",
    "Part",
    "QFedAvg",
    "Round",
    "Strategy",
    "differing_bases",
    "differing_layouts",
    "differing_schedules",
    "inadmissible",
    "misfit",
    "strategy_class",
    "strategy_of",
    "unfit",
    "weighted_mean",
]
