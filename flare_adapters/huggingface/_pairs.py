"""The LoRA weights of a model, module by module."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flare_adapters.huggingface._peft import adapters_of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The LoRA weights of one module.

    Attributes:
        module: Its name in the model.
        a: Name of the first factor in the model.
        b: That of the second.
        bias: That of the second one's bias, which is scaled as well; empty if it has
            none.
        rank: Rows of the first.
        scale: By which their product is multiplied.
    """

    module: str
    a: str
    b: str
    bias: str
    rank: int
    scale: float


def lora_pairs(model: nn.Module, adapters: Collection[str] | None = None) -> list[Pair]:
    """Return the LoRA weights of a model's adapters; none without LoRA.

    Args:
        model: The model.
        adapters: Their names; by default, those that are trained.
    """
    wanted = adapters_of(model) if adapters is None else adapters
    parameters = dict(model.named_parameters())
    return [
        pair
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        for adapter in wanted
        for pair in _pairs(path, layer, adapter, parameters)
    ]


def _pairs(
    path: str, layer: Any, adapter: str, parameters: Mapping[str, Tensor]
) -> Iterator[Pair]:
    for kind, tail in (("lora_", ".weight"), ("lora_embedding_", "")):
        a, b = (f"{path}.{kind}{side}.{adapter}{tail}" for side in "AB")
        if a in parameters and b in parameters:
            bias = f"{path}.{kind}B.{adapter}.bias"
            yield Pair(
                module=path,
                a=a,
                b=b,
                bias=bias if bias in parameters else "",
                rank=len(parameters[a]),
                scale=float(layer.scaling[adapter]),
            )
