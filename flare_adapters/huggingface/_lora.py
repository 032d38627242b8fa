"""What the plan's table ``lora`` asks of a site: what is trained, and in which form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flare_adapters._torch import Wire
from flare_adapters.huggingface._peft import adapters_of, names_on_wire, private_names
from flare_core import ConfigurationError, Lora, ModelState

_Array: TypeAlias = npt.NDArray[Any]
_Side: TypeAlias = Literal["A", "B"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The LoRA weights of one module.

    Attributes:
        a: Name of the first factor in the model.
        b: That of the second.
        bias: That of the second one's bias, which is scaled as well; empty if it has
            none.
        rank: Rows of the first.
        scale: By which their product is multiplied.
    """

    a: str
    b: str
    bias: str
    rank: int
    scale: float


def lora_pairs(model: nn.Module) -> list[Pair]:
    """Return the LoRA weights of a model's active adapters; none without LoRA."""
    parameters = dict(model.named_parameters())
    return [
        pair
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        for adapter in adapters_of(model)
        for pair in _pairs(path, layer, adapter, parameters)
    ]


def wire_of(model: nn.Module, lora: Lora) -> Wire:
    """Return what is special about a model on the wire, as the plan has it.

    Raises:
        ConfigurationError: If a module has a higher rank than the plan.
    """
    names, pairs = names_on_wire(model), lora_pairs(model)
    private = private_names(model)
    if lora.aggregate == "share_a":
        private += [pair.b for pair in pairs]
    if lora.rank is None:
        scales = {names.get(pair.b, pair.b): pair.scale for pair in pairs}
        return Wire(names=names, private=private, scales=scales, lora=True)
    for pair in pairs:
        _refuse_higher(pair, lora.rank)
    form = OfRank(lora.rank, pairs, names)
    return Wire(names=names, private=private, form=form, lora=True)


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


@final
class OfRank:
    """LoRA weights of one rank and of scale 1, whatever they are at the site.

    What a site has less, is filled up with zeros; what it gets more, it cuts off: the
    last ranks, which are the least.  A rank that the global model makes no use of
    begins with the site's own A, and with a B of 0.

    Args:
        rank: On the wire.
        pairs: The LoRA weights of the site.
        names: On the wire, by name in the model.
    """

    def __init__(
        self, rank: int, pairs: Sequence[Pair], names: Mapping[str, str]
    ) -> None:
        self._rank = rank
        self._pairs = [
            (names.get(pair.a, pair.a), names.get(pair.b, pair.b), pair)
            for pair in pairs
        ]
        self._biases = [
            (names.get(pair.bias, pair.bias), pair.scale) for pair in pairs if pair.bias
        ]
        self._own: dict[str, _Array] = {}

    def leaving(self, weights: ModelState) -> ModelState:
        """Return the site's own weights, filled up."""
        arrays = dict(weights)
        for a, b, pair in self._pairs:
            self._own[a] = np.array(weights[a])
            missing = self._rank - pair.rank
            arrays[a] = _filled(weights[a], 0, missing)
            arrays[b] = _filled(_scaled(weights[b], pair.scale), 1, missing)
        for bias, scale in self._biases:
            arrays[bias] = _scaled(weights[bias], scale)
        return ModelState(arrays, classes=weights.layout.classes)

    def arrived(self, weights: ModelState) -> ModelState:
        """Return a global model, cut to the ranks of the site."""
        arrays = dict(weights)
        for a, b, pair in self._pairs:
            whole_a, whole_b = weights[a], weights[b]
            own = np.array(whole_a[: pair.rank])
            cut = whole_b[:, : pair.rank]
            idle = ~(_any(own, 0) | _any(cut, 1))
            own[idle] = self._own[a][idle]
            arrays[a], arrays[b] = own, _scaled(cut, 1 / pair.scale)
        for bias, scale in self._biases:
            arrays[bias] = _scaled(weights[bias], 1 / scale)
        return ModelState(arrays, classes=weights.layout.classes)


def _pairs(
    path: str, layer: Any, adapter: str, parameters: Mapping[str, Tensor]
) -> Iterator[Pair]:
    for kind, tail in (("lora_", ".weight"), ("lora_embedding_", "")):
        a, b = (f"{path}.{kind}{side}.{adapter}{tail}" for side in "AB")
        if a in parameters and b in parameters:
            rank, scale = len(parameters[a]), float(layer.scaling[adapter])
            bias = f"{path}.{kind}B.{adapter}.bias"
            bias = bias if bias in parameters else ""
            yield Pair(a=a, b=b, bias=bias, rank=rank, scale=scale)


def _frozen(lora: Lora, round_number: int) -> _Side:
    if lora.aggregate == "alternate" and round_number % 2:
        return "B"
    return "A"  # first, as B is 0 in the beginning, so that A would learn nothing


def _refuse_higher(pair: Pair, rank: int) -> None:
    if pair.rank > rank:
        msg = (
            f"LoRA weights {pair.a!r} have rank {pair.rank}: expected at most "
            f"lora.rank = {rank} of the plan; raise that, or give them a lower r"
        )
        raise ConfigurationError(msg)


def _filled(array: _Array, axis: int, missing: int) -> _Array:
    shape = list(array.shape)
    shape[axis] = missing
    return np.concatenate([array, np.zeros(shape, array.dtype)], axis)


def _scaled(array: _Array, scale: float) -> _Array:
    return (
        array if scale == 1 else (array.astype(np.float64) * scale).astype(array.dtype)
    )


def _any(array: _Array, axis: int) -> npt.NDArray[np.bool_]:
    """Return for each place on an axis whether anything there is not 0."""
    others = tuple(other for other in range(array.ndim) if other != axis)
    return np.asarray((array != 0).any(axis=others))
