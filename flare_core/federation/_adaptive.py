"""Server optimizers with a step length for each element: FedOpt."""

from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias, final

import msgspec
import numpy as np

from flare_core._model import Array
from flare_core.federation._fold import Part
from flare_core.federation._strategy import Strategy

_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1000)]
_Decay: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class _FedOpt(Strategy, frozen=True):
    """What the three have in common: all but how the squares of steps are gathered."""

    learning_rate: _Positive = 0.1
    beta1: _Decay = 0.9
    tau: _Positive = 1e-3

    @property
    def moments(self) -> Mapping[str, float]:
        """The paper's m and v."""
        return {"first": 0.0, "second": self.tau**2}

    def _moved(
        self,
        current: Array,
        mean: Array,
        moments: Mapping[str, Array],
        gather: Callable[[Array, Array], None],
    ) -> Array:
        """Go along the first moment, as far as the second one lets go.

        Args:
            current: As in `step`.
            mean: Likewise.
            moments: Likewise.
            gather: Adds the square of a step to the second moment, in place.
        """
        delta = _reals(mean - current)
        first, second = _reals(moments["first"]), _reals(moments["second"])
        first *= self.beta1
        first += (1 - self.beta1) * delta
        gather(second, delta * delta)
        step = self.learning_rate * first / (np.sqrt(second) + self.tau)
        moved: Array = current + step.view(mean.dtype)
        return moved


@final
class FedAdam(_FedOpt, frozen=True):
    r"""Adam at the server: each element moves by its own recent steps.

    For the step :math:`\Delta` from the global model to the mean of the local ones,
    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) \Delta`,
    :math:`v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2` and
    :math:`w \leftarrow w + \eta m / (\sqrt{v} + \tau)`, with :math:`m = 0` and
    :math:`v = \tau^2` before the first round, and no correction of a bias (Reddi et
    al., ICLR 2021, Algorithm 2, https://arxiv.org/abs/2003.00295).

    Attributes:
        learning_rate: η in the paper, in units of the parameters: about how far each
            one goes in a round.  It is to be tuned, by powers of ten.
        beta1: Decay of the first moment, a fraction; β₁ in the paper.
        beta2: Decay of the second moment, a fraction; β₂ in the paper.
        tau: Steps below it stay small, in units of the parameters; τ in the paper.
    """

    beta2: _Decay = 0.99

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Go along the first moment, as far as the second one lets go."""
        del part

        def gather(second: Array, square: Array) -> None:
            second *= self.beta2
            second += (1 - self.beta2) * square

        return self._moved(current, mean, moments, gather)


@final
class FedYogi(_FedOpt, frozen=True):
    r"""Yogi at the server: as Adam, but it forgets large steps slowly.

    For the step :math:`\Delta` from the global model to the mean of the local ones,
    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) \Delta`,
    :math:`v \leftarrow v - (1 - \beta_2) \Delta^2 \mathrm{sign}(v - \Delta^2)` and
    :math:`w \leftarrow w + \eta m / (\sqrt{v} + \tau)`, with :math:`m = 0` and
    :math:`v = \tau^2` before the first round, and no correction of a bias (Reddi et
    al., ICLR 2021, Algorithm 2, https://arxiv.org/abs/2003.00295).

    Attributes:
        learning_rate: η in the paper, in units of the parameters: about how far each
            one goes in a round.  It is to be tuned, by powers of ten.
        beta1: Decay of the first moment, a fraction; β₁ in the paper.
        beta2: How slowly the second moment changes, a fraction; β₂ in the paper.
        tau: Steps below it stay small, in units of the parameters; τ in the paper.
    """

    beta2: _Decay = 0.99

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Go along the first moment, as far as the second one lets go."""
        del part

        def gather(second: Array, square: Array) -> None:
            second -= (1 - self.beta2) * square * np.sign(second - square)

        return self._moved(current, mean, moments, gather)


@final
class FedAdagrad(_FedOpt, frozen=True):
    r"""Adagrad at the server: elements that have moved much, move less and less.

    For the step :math:`\Delta` from the global model to the mean of the local ones,
    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) \Delta`,
    :math:`v \leftarrow v + \Delta^2` and
    :math:`w \leftarrow w + \eta m / (\sqrt{v} + \tau)`, with :math:`m = 0` and
    :math:`v = \tau^2` before the first round, and no correction of a bias (Reddi et
    al., ICLR 2021, Algorithm 2, https://arxiv.org/abs/2003.00295).

    Attributes:
        learning_rate: η in the paper, in units of the parameters: about how far each
            one goes in the first round.  It is to be tuned, by powers of ten.
        beta1: Decay of the first moment, a fraction; β₁ in the paper.  With 0 it is
            plain Adagrad.
        tau: Steps below it stay small, in units of the parameters; τ in the paper.
    """

    beta1: _Decay = 0.0

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Go along the first moment, as far as the second one lets go."""
        del part

        def gather(second: Array, square: Array) -> None:
            second += square

        return self._moved(current, mean, moments, gather)


def _reals(array: Array) -> Array:
    """Return the real numbers that complex ones are made of; a view."""
    return array.view(np.float64)
