"""The pairs of LoRA factors in a model, and how well they were combined."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import msgspec
import numpy as np

from flare_core._model import (
    DTYPES,
    Layout,
    ModelState,
    TensorClass,
    TensorSpec,
    accumulator_dtype,
)
from flare_core.federation._low_rank import Factors, Losses

_FACTOR = re.compile(r"(.*\.|)(lora_(?:embedding_)?)([AB])(|\..+)")
"""As PEFT has it: ``MODULE.lora_A.weight``, or ``MODULE.lora_embedding_A``."""


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """The LoRA weights of one module: what they add to its weight is B A, scaled.

    Attributes:
        module: Its name.
        a: The first factor, rank by inputs; of a convolution with more axes.
        b: The second, outputs by rank.
    """

    module: str
    a: TensorSpec
    b: TensorSpec

    @property
    def rank(self) -> int:
        """How many rows A has, and columns B."""
        return self.a.shape[0]

    def of(self, weights: ModelState) -> Factors:
        """Return the factors of a model, as matrices in float64: copies."""
        b, a = weights[self.b.name], weights[self.a.name]
        return Factors(
            b.astype(np.float64).reshape(-1, self.rank),
            a.astype(np.float64).reshape(self.rank, -1),
        )


class LoraReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the LoRA weights of a round were combined.

    The wanted change of a module's weight is the mean of the products B A of the sites.
    All errors are in Frobenius norms, relative to it.

    Attributes:
        aggregate: By which method of the plan's ``[lora]``.
        retained: Share of its energy, the squared norm over all modules, that the best
            factors of the rank keep.
        error: Of the new factors, over all modules.
        averaging_error: That averaging each factor by itself makes, or would have made.
        worst_module: The module with the largest error.
        worst_error: Its error.
    """

    aggregate: str
    retained: float
    error: float
    averaging_error: float
    worst_module: str
    worst_error: float


def pairs_of(layout: Layout) -> tuple[Pair, ...]:
    """Return the pairs of a model, by module; factors without the other are none."""
    return tuple(sorted(_pairs(layout), key=lambda pair: pair.a.name))


def lora_report(aggregate: str, losses: Mapping[str, Losses]) -> LoraReport:
    """Return what became of a round.

    Args:
        aggregate: The method.
        losses: Of each module; at least one.
    """
    errors = {module: _relative([one], "made") for module, one in losses.items()}
    worst = max(errors, key=lambda module: errors[module])
    every = list(losses.values())
    return LoraReport(
        aggregate=aggregate,
        retained=1 - _relative(every, "least") ** 2,
        error=_relative(every, "made"),
        averaging_error=_relative(every, "averaging"),
        worst_module=worst,
        worst_error=errors[worst],
    )


def _relative(
    losses: Sequence[Losses], lost: Literal["least", "averaging", "made"]
) -> float:
    energy = sum(one.energy for one in losses)
    total: float = sum(getattr(one, lost) for one in losses)
    return math.sqrt(total / energy) if energy else 0.0


def _pairs(layout: Layout) -> Iterator[Pair]:
    found: dict[tuple[str, ...], dict[str, TensorSpec]] = {}
    for spec in layout.tensors:
        match = _FACTOR.fullmatch(spec.name)
        if match is not None and _is_matrix(spec):
            module, kind, side, rest = match.groups()
            found.setdefault((module, kind, rest), {})[side] = spec
    for (module, _, rest), sides in found.items():
        a, b = sides.get("A"), sides.get("B")
        if a is not None and b is not None and _match(a, b):
            adapter = rest.removesuffix(".weight")
            yield Pair(f"{module.removesuffix('.')}{adapter}", a, b)


def _is_matrix(spec: TensorSpec) -> bool:
    real = accumulator_dtype(DTYPES[spec.dtype]) == np.float64
    few_axes = len(spec.shape) < 2  # noqa: PLR2004 - of a matrix
    return spec.kind is TensorClass.PARAMETER and real and not few_axes


def _match(a: TensorSpec, b: TensorSpec) -> bool:
    rank = a.shape[0]
    return 0 < rank == b.shape[1] and math.prod(b.shape[1:]) == rank
