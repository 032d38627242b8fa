"""What a site keeps of the global LoRA ranks that its own adapter cannot hold."""

from collections.abc import Sequence
from typing import Any, final

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flare_adapters.huggingface._pairs import Pair, lora_pairs
from flare_adapters.huggingface._peft import RESIDUAL, adapters_of
from flare_core import Lora, UnsupportedError


class Residual:
    """The ranks beside the site's own, as an adapter that is not trained.

    Args:
        model: A model that has it, unless nothing is kept.

    Attributes:
        pairs: Its weights, by module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pairs = {pair.module: pair for pair in lora_pairs(model, [RESIDUAL])}

    def loaded(self) -> None:
        """Do nothing: the adapter is active."""


@final
class Folded(Residual):
    """The ranks beside the site's own, folded into the weights of the base.

    In each round they are added to these as they were at first, so that a site that
    was started again comes to the same bits.

    Args:
        model: Nothing is folded into it yet.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._layers: list[tuple[Any, Tensor, Tensor]] = []
        for module in self.pairs:
            layer: Any = model.get_submodule(module)
            weight = layer.get_base_layer().weight
            _refuse_to_fold(module, weight, model)
            self._layers.append((layer, weight, weight.detach().clone()))

    @torch.no_grad()
    def loaded(self) -> None:
        """Fold a new one into the base, instead of the last."""
        for layer, weight, at_first in self._layers:
            weight.copy_(at_first + layer.get_delta_weight(RESIDUAL))


def add_residual(model: Any, lora: Lora) -> None:
    """Give a model the adapter for what is kept, with zeros; unless it has it.

    Raises:
        UnsupportedError: If a module cannot have it.
    """
    if lora.residual == "drop" or RESIDUAL in getattr(model, "peft_config", {}):
        return
    pairs = lora_pairs(model)
    for pair in pairs:
        _refuse_to_keep(pair, model, lora)
    ranks = _beside(pairs, lora)
    if not ranks:
        return
    (adapter,) = adapters_of(model)
    config = LoraConfig(
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,  # of scale 1
        init_lora_weights=False,
        fan_in_fan_out=model.peft_config[adapter].fan_in_fan_out,
    )
    trained = {id(one) for one in model.parameters() if one.requires_grad}
    with torch.random.fork_rng(devices=[]):  # the training's are not drawn for it
        if isinstance(model, PeftModel):
            model.add_adapter(RESIDUAL, config)
        else:
            inject_adapter_in_model(config, model, RESIDUAL)
    active = [adapter] if lora.residual == "fold" else [adapter, RESIDUAL]
    parameters = dict(model.named_parameters())
    for pair, kept in zip(pairs, _kept(model, pairs), strict=True):
        model.get_submodule(pair.module).set_adapter(active)
        if kept is not None:
            for name, of_own in ((kept.a, pair.a), (kept.b, pair.b)):
                one, own = parameters[name], parameters[of_own]
                one.data = torch.zeros_like(one, dtype=own.dtype, device=own.device)
    for one in model.parameters():
        one.requires_grad_(id(one) in trained)


def forget_residual(model: Any, lora: Lora) -> None:
    """Remove the adapter where the base holds for good what was folded into it."""
    if lora.residual == "fold" and RESIDUAL in getattr(model, "peft_config", {}):
        model.delete_adapter(RESIDUAL)


def _beside(pairs: Sequence[Pair], lora: Lora) -> dict[str, int]:
    """Return how many ranks are kept beside modules, by PEFT's names, if any."""
    assert lora.rank is not None  # noqa: S101 - the plan says so with a residual
    return {
        pair.module.removeprefix("base_model.model."): lora.place
        or lora.rank - pair.rank
        for pair in pairs
        if lora.place or pair.rank < lora.rank
    }


def _kept(model: nn.Module, pairs: Sequence[Pair]) -> list[Pair | None]:
    kept = Residual(model).pairs
    return [kept.get(pair.module) for pair in pairs]


def _refuse_to_keep(pair: Pair, model: nn.Module, lora: Lora) -> None:
    why = ""
    layer: Any = model.get_submodule(pair.module)
    if len(adapters_of(model)) > 1:
        why = "the model has several adapters that are trained"
    elif any(layer.use_dora.values()):
        why = "it has DoRA, which scales what is added by its length"
    elif any(isinstance(one, DTensor) for one in model.parameters()):
        why = "the model is sharded"
    elif lora.residual == "adapter" and not isinstance(model, PeftModel):
        why = "transformers saves no model with two active adapters, as PEFT does"
    if why:
        msg = (
            f"the plan's lora.residual keeps ranks beside those of {pair.a!r}, and "
            f"{why}: expected one LoRA adapter without DoRA, made by get_peft_model, "
            'on a whole model, or lora.residual = "drop"'
        )
        raise UnsupportedError(msg)


def _refuse_to_fold(module: str, weight: Tensor, model: nn.Module) -> None:
    why = ""
    every = model.named_parameters(remove_duplicate=False)
    if weight.dtype not in {torch.float32, torch.float64}:
        why = f"they are {weight.dtype}, which would round it away"
    elif sum(one is weight for _, one in every) > 1:
        why = "another module has the same weights"
    if why:
        msg = (
            f'the plan\'s lora.residual = "fold" adds to the weights of {module!r}, '
            f'and {why}: expected lora.residual = "adapter", which every base can have'
        )
        raise UnsupportedError(msg)
