"""LoRA weights of one rank on the wire, whatever they are at the site."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from flare_adapters.huggingface._pairs import Pair
from flare_adapters.huggingface._residual import Residual
from flare_core import ModelState

_Array: TypeAlias = npt.NDArray[Any]


@final
class OfRank:
    """LoRA weights of one rank and of scale 1.

    What a site has less, is filled up with zeros; what it gets more, it cuts off: the
    last ranks, which are the least.  Where the site keeps these beside its own, they
    fill up, instead, what it sends.  A rank that the global model makes no use of
    begins with the site's own A, and with a B of 0.

    Args:
        rank: On the wire.
        pairs: The LoRA weights of the site.
        names: On the wire, by name in the model.
        residual: The ranks that the site keeps beside its own, if any.

    Attributes:
        beside: Names of the parameters that hold these.
    """

    def __init__(
        self,
        rank: int,
        pairs: Sequence[Pair],
        names: Mapping[str, str],
        residual: Residual,
    ) -> None:
        self._rank = rank
        self._pairs = [
            (names.get(pair.a, pair.a), names.get(pair.b, pair.b), pair)
            for pair in pairs
        ]
        self._biases = [
            (names.get(pair.bias, pair.bias), pair.scale) for pair in pairs if pair.bias
        ]
        self._residual = residual
        self.beside: Sequence[str] = [
            name for pair in residual.pairs.values() for name in (pair.a, pair.b)
        ]
        self._own: dict[str, _Array] = {}

    def leaving(self, weights: ModelState) -> ModelState:
        """Return the site's own weights, filled up."""
        arrays = {n: one for n, one in weights.items() if n not in self.beside}
        for a, b, pair in self._pairs:
            self._own[a] = np.array(weights[a])
            own_b = _scaled(weights[b], pair.scale)
            kept = self._residual.pairs.get(pair.module)
            if kept is None:
                missing = self._rank - pair.rank
                rest_a, rest_b = (
                    _zeros(weights[a], 0, missing),
                    _zeros(own_b, 1, missing),
                )
            else:
                rest_a, rest_b = weights[kept.a], weights[kept.b]
            arrays[a] = np.concatenate([weights[a], rest_a], 0)
            arrays[b] = np.concatenate([own_b, rest_b], 1)
        for bias, scale in self._biases:
            arrays[bias] = _scaled(weights[bias], scale)
        return self._state(arrays, weights)

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
            kept = self._residual.pairs.get(pair.module)
            if kept is not None:
                arrays[kept.a] = whole_a[pair.rank :]
                arrays[kept.b] = whole_b[:, pair.rank :]
        for bias, scale in self._biases:
            arrays[bias] = _scaled(weights[bias], 1 / scale)
        return self._state(arrays, weights)

    def loaded(self) -> None:
        """Have the model make use of the ranks beside the site's own."""
        self._residual.loaded()

    def _state(self, arrays: Mapping[str, _Array], like: ModelState) -> ModelState:
        classes = like.layout.classes
        return ModelState(
            arrays, classes={n: classes[n] for n in arrays if n in classes}
        )


def _zeros(like: _Array, axis: int, missing: int) -> _Array:
    shape = list(like.shape)
    shape[axis] = missing
    return np.zeros(shape, like.dtype)


def _scaled(array: _Array, scale: float) -> _Array:
    return (
        array if scale == 1 else (array.astype(np.float64) * scale).astype(array.dtype)
    )


def _any(array: _Array, axis: int) -> npt.NDArray[np.bool_]:
    """Return for each place on an axis whether anything there is not 0."""
    others = tuple(other for other in range(array.ndim) if other != axis)
    return np.asarray((array != 0).any(axis=others))
