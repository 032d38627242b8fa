"""What the plan's table ``lora`` asks of a site: what is trained, and in which form."""

from typing import Literal, TypeAlias

from torch import nn

from flare_adapters._torch import Wire
from flare_adapters.huggingface._of_rank import OfRank
from flare_adapters.huggingface._pairs import Pair, lora_pairs
from flare_adapters.huggingface._peft import names_on_wire, private_names
from flare_adapters.huggingface._residual import Folded, Residual, add_residual
from flare_core import ConfigurationError, Lora

_Side: TypeAlias = Literal["A", "B"]


def wire_of(model: nn.Module, lora: Lora) -> Wire:
    """Return what is special about a model on the wire, as the plan has it.

    Raises:
        ConfigurationError: If a module has a higher rank than the plan.
        UnsupportedError: If a module cannot have what the plan keeps beside its ranks.
    """
    names, pairs = names_on_wire(model), lora_pairs(model)
    if lora.rank is None:
        private = private_names(model)
        if lora.aggregate == "share_a":
            private += [pair.b for pair in pairs]
        scales = {names.get(pair.b, pair.b): pair.scale for pair in pairs}
        return Wire(names=names, private=private, scales=scales, lora=True)
    for pair in pairs:
        _refuse_higher(pair, lora)
    residual = _residual(model, lora)
    form = OfRank(lora.rank, lora.place, pairs, names, residual)
    return Wire(names=names, private=private_names(model), form=form, lora=True)


def train_by_turns(model: nn.Module, lora: Lora, round_number: int | None) -> None:
    """Freeze the factors that are not trained in a round, and train the others.

    Args:
        model: The model that is trained.
        lora: The plan's word.
        round_number: The round; None when the run is over, and all are trained again.
    """
    if not lora.takes_turns:
        return
    frozen = None if round_number is None else _frozen(lora, round_number)
    parameters = dict(model.named_parameters())
    for pair in lora_pairs(model):
        parameters[pair.a].requires_grad_(frozen != "A")
        parameters[pair.b].requires_grad_(frozen != "B")


def _residual(model: nn.Module, lora: Lora) -> Residual:
    add_residual(model, lora)
    return Folded(model) if lora.residual == "fold" else Residual(model)


def _frozen(lora: Lora, round_number: int) -> _Side:
    if lora.aggregate == "alternate" and round_number % 2:
        return "B"
    return "A"  # first, as B is 0 in the beginning, so that A would learn nothing


def _refuse_higher(pair: Pair, lora: Lora) -> None:
    name, most = ("rank", lora.rank) if lora.fresh is None else ("fresh", lora.fresh)
    if most is not None and pair.rank > most:
        msg = (
            f"LoRA weights {pair.a!r} have rank {pair.rank}: expected at most "
            f"lora.{name} = {most} of the plan; raise that, or give them a lower r"
        )
        raise ConfigurationError(msg)
