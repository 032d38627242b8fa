"""LoRA weights of one rank on the wire, whatever they are at the site."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

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
    last ranks, which are the least.  Where the site keeps others beside its own, they
    fill up, instead, what it sends.  A rank that the global model makes no use of
    begins with the site's own A, and with a B of 0.

    Args:
        rank: On the wire.
        place: The first of these that are a site's own.
        pairs: The LoRA weights of the site.
        names: On the wire, by name in the model.
        residual: The ranks that the site keeps beside its own, if any.

    Attributes:
        beside: Names of the parameters that hold these.
    """

    def __init__(
        self,
        rank: int,
        place: int,
        pairs: Sequence[Pair],
        names: Mapping[str, str],
        residual: Residual,
    ) -> None:
        self._rank = rank
        self._place = place
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
            arrays[a] = self._filled(weights[a], 0, self._kept(weights, pair, "a"))
            arrays[b] = self._filled(own_b, 1, self._kept(weights, pair, "b"))
        for bias, scale in self._biases:
            arrays[bias] = _scaled(weights[bias], scale)
        return self._state(arrays, weights)

    def arrived(self, weights: ModelState) -> ModelState:
        """Return a global model, cut to the ranks of the site."""
        arrays = dict(weights)
        for a, b, pair in self._pairs:
            ranks = slice(self._place, self._place + pair.rank)
            own, cut = np.array(weights[a][ranks]), weights[b][:, ranks]
            idle = ~(_any(own, 0) | _any(cut, 1))
            own[idle] = self._own[a][idle]
            arrays[a], arrays[b] = own, _scaled(cut, 1 / pair.scale)
            kept = self._residual.pairs.get(pair.module)
            if kept is not None:
                rest = slice(self._place) if self._place else slice(pair.rank, None)
                arrays[kept.a], arrays[kept.b] = weights[a][rest], weights[b][:, rest]
        for bias, scale in self._biases:
            arrays[bias] = _scaled(weights[bias], 1 / scale)
        return self._state(arrays, weights)

    def loaded(self) -> None:
        """Have the model make use of the ranks beside the site's own."""
        self._residual.loaded()

    def _kept(
        self, weights: ModelState, pair: Pair, side: Literal["a", "b"]
    ) -> _Array | None:
        kept = self._residual.pairs.get(pair.module)
        return None if kept is None else weights[getattr(kept, side)]

    def _filled(self, own: _Array, axis: int, kept: _Array | None) -> _Array:
        """Return a factor of the rank on the wire."""
        before = [kept] if self._place and kept is not None else []
        after = [] if self._place or kept is None else [kept]
        found = np.concatenate([*before, own, *after], axis)
        shape = list(found.shape)
        shape[axis] = self._rank - shape[axis]
        return np.concatenate([found, np.zeros(shape, own.dtype)], axis)

    def _state(self, arrays: Mapping[str, _Array], like: ModelState) -> ModelState:
        classes = like.layout.classes
        return ModelState(
            arrays, classes={n: classes[n] for n in arrays if n in classes}
        )


def _scaled(array: _Array, scale: float) -> _Array:
    return (
        array if scale == 1 else (array.astype(np.float64) * scale).astype(array.dtype)
    )


def _any(array: _Array, axis: int) -> npt.NDArray[np.bool_]:
    """Return for each place on an axis whether anything there is not 0."""
    others = tuple(other for other in range(array.ndim) if other != axis)
    return np.asarray((array != 0).any(axis=others))
