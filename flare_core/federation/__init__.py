"""The rules of a federation, pure: no socket, file, thread or clock."""

from flare_core.federation._adaptive import FedAdagrad, FedAdam, FedYogi
from flare_core.federation._admission import (
    differing_bases,
    differing_layouts,
    differing_scales,
    differing_schedules,
    differing_seals,
    implausible,
    inadmissible,
    misfit,
    unfit,
    weighted_mean,
)
from flare_core.federation._aggregation import Aggregation, Cohort, Mean, Shares
from flare_core.federation._averaged import Averaged
from flare_core.federation._bulyan import Bulyan
from flare_core.federation._choice import AGGREGATIONS, STRATEGIES, Choice, chosen
from flare_core.federation._clipping import CentredClipping, NormBounding
from flare_core.federation._combining import Combining, combining
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Each, Fold, Part, Tally, batches
from flare_core.federation._geometric import GeometricMedian
from flare_core.federation._invited import invited
from flare_core.federation._krum import Krum, MultiKrum
from flare_core.federation._lora import LoraReport, Pair, lora_report, pairs_of
from flare_core.federation._lora_choice import LoraRule, lora_rule
from flare_core.federation._low_rank import (
    Factors,
    Losses,
    factor_mean,
    padded_mean,
    product_mean,
)
from flare_core.federation._momentum import DiLoCo, FedAvgM
from flare_core.federation._order import Median, TrimmedMean
from flare_core.federation._pairs import LORA_PAIRS, PAIRS, Choices
from flare_core.federation._regions import place
from flare_core.federation._round import Round
from flare_core.federation._scores import Score, Scores
from flare_core.federation._staleness import Staleness, counts_late, staleness_of
from flare_core.federation._strategy import FedAvg, Strategy
from flare_core.federation._weighting import FedNova, QFedAvg

__all__ = [
    "AGGREGATIONS",
    "LORA_PAIRS",
    "PAIRS",
    "STRATEGIES",
    "Aggregation",
    "Averaged",
    "Bulyan",
    "CentredClipping",
    "Choice",
    "Choices",
    "Cohort",
    "Combining",
    "Contribution",
    "DiLoCo",
    "Each",
    "Factors",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedNova",
    "FedYogi",
    "Fold",
    "GeometricMedian",
    "Krum",
    "LoraReport",
    "LoraRule",
    "Losses",
    "Mean",
    "Median",
    "MultiKrum",
    "NormBounding",
    "Pair",
    "Part",
    "QFedAvg",
    "Round",
    "Score",
    "Scores",
    "Shares",
    "Staleness",
    "Strategy",
    "Tally",
    "TrimmedMean",
    "batches",
    "chosen",
    "combining",
    "counts_late",
    "differing_bases",
    "differing_layouts",
    "differing_scales",
    "differing_schedules",
    "differing_seals",
    "factor_mean",
    "implausible",
    "inadmissible",
    "invited",
    "lora_report",
    "lora_rule",
    "misfit",
    "padded_mean",
    "pairs_of",
    "place",
    "product_mean",
    "staleness_of",
    "unfit",
    "weighted_mean",
]
