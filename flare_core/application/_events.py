"""What happens in a run, as values that a record or a display can listen to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from flare_core._errors import Refusal
from flare_core._model import Layout, Metrics, ModelState, TensorSpec
from flare_core._plan import Plan
from flare_core.federation import LoraReport


class SiteReport(msgspec.Struct, frozen=True, kw_only=True):
    """One site in one round.

    Attributes:
        num_examples: Examples seen in local training.
        num_steps: Optimizer steps of local training; 0 if the site does not say.
        global_metrics: Of the global model that its local training started from.
        metrics: Of the local model after training.
        bytes_down: Bytes sent to it of the global model, repeated ones too; of a site
            that shares the server's spool, those that would have been.
        bytes_up: Bytes of its update.
        error_up: Relative error of the update's encoding; 0 if it lost nothing.
        seconds: From the round's start until its update was in.
        staleness: How many global models came since the one that it started from.
    """

    num_examples: int
    num_steps: int
    global_metrics: Metrics
    metrics: Metrics
    bytes_down: int
    bytes_up: int
    error_up: float
    seconds: float
    staleness: int = 0


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round, as a line of ``rounds.jsonl``.

    Attributes:
        round: Its number, from 0.
        cohort: The sites that were invited, in order.
        sites: Report of each site whose update counts.
        num_examples: Of all sites.
        global_metrics: Weighted mean over the sites, before local training.
        metrics: Weighted mean over the sites, after local training.
        bytes_down: Bytes of models sent, over all these sites.
        bytes_up: Bytes of updates received.
        error_down: Relative error that the encoding of the next global model made.
        lora: How its LoRA weights were combined, if it has some.
        seconds: Wall time of the round.
        blake3: Hash of the global model that came out, as a safetensors file.
    """

    round: int
    cohort: tuple[str, ...]
    sites: Mapping[str, SiteReport]
    num_examples: int
    global_metrics: Metrics
    metrics: Metrics
    bytes_down: int
    bytes_up: int
    error_down: float
    seconds: float
    blake3: str
    lora: LoraReport | None = None


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The best global model of a run.

    Attributes:
        number: The round that started from it; of the final model, the number of
            rounds played.
        metric: By which it is the best.
        value: Of the metric: mean over the sites, by their examples.
        blake3: Its hash.
    """

    number: int
    metric: str
    value: float
    blake3: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended.

    Attributes:
        rounds: Rounds played.
        blake3: Of the last global model; empty if there is none.
        metrics: Of the final model: mean over the sites, by the examples that each of
            them had last.
        sites: Each site's metrics of the final model.
        best: The best global model, where the plan says by which metric.
        stopped: Why fewer rounds were played than the plan has; empty if all were.
        error: Why it failed; empty if it did not.
        failed_site: The site whose failure ended it, if one did.
    """

    rounds: int = 0
    blake3: str = ""
    metrics: Metrics = {}
    sites: Mapping[str, Metrics] = {}
    best: Best | None = None
    stopped: str = ""
    error: str = ""
    failed_site: str = ""


@final
@dataclass(frozen=True, slots=True)
class RunOpened:
    """The server listens."""

    plan: Plan
    endpoint: str


@final
@dataclass(frozen=True, slots=True)
class SiteJoined:
    """A site has said what it would exchange."""

    site: str
    layout: Layout
    stays: tuple[TensorSpec, ...]
    base: str
    schedule: str
    horizon: str


@final
@dataclass(frozen=True, slots=True)
class Published:
    """A global model is out.

    Attributes:
        round_number: The round that starts from it, or the number of rounds played.
        path: A safetensors file; link or copy it, it is removed with the next one.
        weights: What is in it, mapped; valid even when the file is gone.
        blake3: Hash of the file, in hexadecimal.
        final: Whether it is the last one.
        cohort: The sites that are invited to the round.
    """

    round_number: int
    path: Path
    weights: ModelState
    blake3: str
    final: bool
    cohort: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Updated:
    """A site's update is in."""

    site: str
    round_number: int
    report: SiteReport


@final
@dataclass(frozen=True, slots=True)
class RoundPlayed:
    """A round is over."""

    record: RoundRecord


@final
@dataclass(frozen=True, slots=True)
class BestFound:
    """A global model is better than all before, as its sites say.

    Attributes:
        best: It.
        path: A safetensors file; link or copy it, it is removed with the next one.
    """

    best: Best
    path: Path


@final
@dataclass(frozen=True, slots=True)
class EndsEarly:
    """No round follows, though the plan has more.

    Attributes:
        rounds: How many were played.
        reason: Why no more are.
    """

    rounds: int
    reason: str


@final
@dataclass(frozen=True, slots=True)
class SiteRefused:
    """Something of a site was not accepted."""

    refusal: Refusal


@final
@dataclass(frozen=True, slots=True)
class SiteLeft:
    """A site has gone.

    Attributes:
        site: Its name.
        reason: Why, if before the end.
        metrics: Of the last global model it loaded.
    """

    site: str
    reason: str
    metrics: Metrics


@final
@dataclass(frozen=True, slots=True)
class UpdateIgnored:
    """A site offered an update that nobody waits for: late, repeated or uninvited.

    Attributes:
        site: Its name.
        round_number: The round that the update answers; ``INITIAL`` for weights that a
            run could start from.
    """

    site: str
    round_number: int


@final
@dataclass(frozen=True, slots=True)
class RunPaused:
    """A round cannot be played with the sites that are here.

    Attributes:
        round_number: Which.
        reason: What it waits for.
    """

    round_number: int
    reason: str


@final
@dataclass(frozen=True, slots=True)
class RunResumed:
    """What a round waited for has come."""

    round_number: int


@final
@dataclass(frozen=True, slots=True)
class RunTakenUp:
    """A server goes on where another one was.

    Attributes:
        round_number: In which round.
        records: Of the rounds before, as far as they are on record.
    """

    round_number: int
    records: Sequence[RoundRecord]


@final
@dataclass(frozen=True, slots=True)
class RunEnded:
    """Nothing more happens."""

    result: Result


Event: TypeAlias = (
    RunOpened
    | SiteJoined
    | Published
    | Updated
    | RoundPlayed
    | BestFound
    | EndsEarly
    | SiteRefused
    | SiteLeft
    | UpdateIgnored
    | RunPaused
    | RunResumed
    | RunTakenUp
    | RunEnded
)
Observer: TypeAlias = Callable[[Event], None]
"""Called on the server's thread, in order; what it raises ends the run."""
