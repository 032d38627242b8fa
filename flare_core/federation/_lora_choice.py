"""Which way of combining LoRA weights goes together with the rest of a plan."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

from flare_core._errors import ConfigurationError
from flare_core._local import FedDyn, Scaffold
from flare_core._plan import Plan
from flare_core._topology import Asynchronous
from flare_core.federation._low_rank import (
    Factors,
    Gauge,
    Losses,
    factor_mean,
    padded_mean,
    product_mean,
)
from flare_core.federation._strategy import Strategy

_Combine: TypeAlias = Callable[
    [Sequence[Factors], Sequence[float]], tuple[Factors, Losses]
]


@final
@dataclass(frozen=True, slots=True)
class LoraRule:
    """How a run combines LoRA weights.

    Attributes:
        name: As the plan has it.
        combine: Returns the factors of a module for those of the updates with their
            weights, and what is lost by them.
        by_factor: Whether these are the mean of each factor by itself, as of any other
            tensor.
        instead_of: Why it is not the products that are combined, if the plan would
            have left it open; else empty.
    """

    name: str
    combine: _Combine
    by_factor: bool = True
    instead_of: str = ""


def lora_rule(plan: Plan, strategy: Strategy) -> LoraRule:
    """Return how a run combines LoRA weights.

    Raises:
        ConfigurationError: If the plan names a way that does not go together with the
            rest of it.
    """
    if plan.lora.concerns_sites and isinstance(plan.local, Scaffold | FedDyn):
        msg = (
            f"{plan.lora} changes which LoRA weights sites train or exchange, and "
            f"{plan.local} keeps a correction of each: leave one out"
        )
        raise ConfigurationError(msg)
    name = plan.lora.aggregate
    obstacle = next(_obstacles(plan, strategy), "")
    if name == "auto" and obstacle:
        return LoraRule("fedavg", factor_mean, instead_of=obstacle)
    rule = _rule("product" if name == "auto" else name, turned=bool(plan.lora.rank))
    if obstacle and not rule.by_factor:
        msg = (
            f"lora.aggregate = {name!r} makes factors that do not follow from those of "
            f'the round before, and {obstacle}: expected lora.aggregate = "fedavg", or '
            "another setting there"
        )
        raise ConfigurationError(msg)
    return rule


def _rule(name: str, *, turned: bool) -> LoraRule:
    """Return a way by its name; `turned` if the first ranks must be the best ones."""
    match name:
        case "product":
            gauge: Gauge = "balanced" if turned else "kept"
            combine = partial(product_mean, gauge=gauge)
            return LoraRule(name, combine, by_factor=False)
        case "fedsvd":
            combine = partial(product_mean, gauge="orthonormal")
            return LoraRule(name, combine, by_factor=False)
        case "pad":
            return LoraRule(name, padded_mean, by_factor=False)
        case _:
            return LoraRule(name, factor_mean)


def _obstacles(plan: Plan, strategy: Strategy) -> Iterator[str]:
    """Yield what in a plan needs factors that follow from others."""
    kind = type(strategy)
    if kind.step is not Strategy.step or kind.reach is not Strategy.reach:
        yield f"strategy {plan.strategy.name!r} goes on from those"
    if plan.aggregation.name != "mean":
        yield f"aggregation {plan.aggregation.name!r} compares those of the sites"
    if isinstance(plan.local, Scaffold | FedDyn):
        yield f"{plan.local} corrects steps by those"
    if plan.encoding.up == "topk":
        yield 'encoding.up = "topk" adds what it left out of those'
    if plan.encoding.down not in {"none", "xor"}:
        yield f"encoding.down = {plan.encoding.down!r} rounds what changed in them"
    if plan.round.late_weight is not None:
        yield "round.late_weight counts steps that were taken from those"
    if isinstance(plan.topology, Asynchronous):
        yield 'topology.name = "async" counts steps that were taken from those'
    if plan.by_region:
        yield 'topology.name = "hierarchical" adds up each of them by region'
