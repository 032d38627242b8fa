"""Which way of combining LoRA weights goes together with the rest of a plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

from flare_core._errors import ConfigurationError
from flare_core._lora import Lora
from flare_core._pairs import first
from flare_core._plan import Plan
from flare_core.federation._low_rank import (
    Factors,
    Gauge,
    Losses,
    factor_mean,
    padded_mean,
    product_mean,
)
from flare_core.federation._pairs import LORA_PAIRS, Choices
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
    name = plan.lora.aggregate
    pair = first(LORA_PAIRS, Choices(plan, strategy))
    obstacle = f"{pair.other}: {pair.why}" if pair else ""
    if name == "auto" and obstacle:
        return LoraRule("fedavg", factor_mean, instead_of=obstacle)
    way = _rule("product" if name == "auto" else name, plan.lora)
    if obstacle and not way.by_factor:
        msg = (
            f"lora.aggregate = {name!r} makes factors that do not follow from those of "
            f"the round before, and {obstacle}: expected lora.aggregate = 'fedavg', or "
            "another setting there"
        )
        raise ConfigurationError(msg)
    return way


def _rule(name: str, lora: Lora) -> LoraRule:
    match name:
        case "product":
            # sites of a lower rank take the first ones, which must be the best
            gauge: Gauge = "kept" if lora.rank is None else "balanced"
            combine = partial(product_mean, gauge=gauge)
            return LoraRule(name, combine, by_factor=False)
        case "stack":
            combine = partial(product_mean, gauge="balanced", free=lora.fresh or 0)
            return LoraRule(name, combine, by_factor=False)
        case "fedsvd":
            combine = partial(product_mean, gauge="orthonormal")
            return LoraRule(name, combine, by_factor=False)
        case "pad":
            return LoraRule(name, padded_mean, by_factor=False)
        case _:
            return LoraRule(name, factor_mean)
