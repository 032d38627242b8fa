"""The rules of a federation, pure: no socket, file, thread or clock."""

from flare_core.federation._admission import (
    differing_bases,
    differing_layouts,
    differing_schedules,
    inadmissible,
    unfit,
    weighted_mean,
)
from flare_core.federation._fold import Fold
from flare_core.federation._round import Round
from flare_core.federation._strategy import FedAvg, Strategy

__all__ = [
    "FedAvg",
    "Fold",
    "Round",
    "Strategy",
    "differing_bases",
    "differing_layouts",
    "differing_schedules",
    "inadmissible",
    "unfit",
    "weighted_mean",
]
