"""Server optimizers with momentum: the step of each round, and of those before."""

from collections.abc import Mapping
from typing import Annotated, TypeAlias, final

import msgspec
import numpy as np

from flare_core._model import Array
from flare_core.federation._fold import Part
from flare_core.federation._strategy import Strategy

_Rate: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1000)]
_Decay: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1)]


@final
class FedAvgM(Strategy, frozen=True):
    r"""Federated averaging with momentum at the server.

    For the step :math:`\Delta` from the global model to the mean of the local ones,
    :math:`v \leftarrow \beta v + \Delta` and :math:`w \leftarrow w + \eta v`, with
    :math:`v = 0` before the first round (Hsu, Qi and Brown, 2019, section 4.3,
    https://arxiv.org/abs/1909.06335).  With :math:`\beta = 0` it is gradient descent at
    the server, and with :math:`\eta = 1` beside that federated averaging, bit for bit.

    Attributes:
        learning_rate: η, a factor on the momentum.  A step that every round takes is
            multiplied by learning_rate / (1 - momentum) in the end.
        momentum: β, the fraction of the momentum that stays from round to round.
    """

    learning_rate: _Rate = 1.0
    momentum: _Decay = 0.9

    @property
    def moments(self) -> Mapping[str, float]:
        """The momentum."""
        return {"velocity": 0.0}

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Go along the momentum."""
        del part
        delta = mean - current
        velocity = _gathered(moments["velocity"], self.momentum, delta)
        return _moved(mean, delta, self.learning_rate * velocity)


@final
class DiLoCo(Strategy, frozen=True):
    r"""Long local training, joined by Nesterov's momentum: for language models.

    For the step :math:`\Delta` from the global model to the mean of the local ones,
    :math:`v \leftarrow \beta v + \Delta` and
    :math:`w \leftarrow w + \eta (\Delta + \beta v)`, with :math:`v = 0` before the
    first round (Douillard et al., 2023, Algorithm 1, https://arxiv.org/abs/2311.08105;
    its defaults).  The paper's inner optimizer is AdamW, for hundreds of steps: that is
    the script's, with ``schedule.every_n_steps = 500``, ``optimizer_state = "keep"``.

    Attributes:
        learning_rate: η, of the outer optimizer.  A step that every round takes is
            multiplied by learning_rate / (1 - momentum) in the end.
        momentum: β, the fraction of the momentum that stays from round to round.
    """

    learning_rate: _Rate = 0.7
    momentum: _Decay = 0.9

    @property
    def moments(self) -> Mapping[str, float]:
        """The momentum."""
        return {"velocity": 0.0}

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Go along the momentum as it will be."""
        del part
        delta = mean - current
        velocity = _gathered(moments["velocity"], self.momentum, delta)
        ahead = delta + self.momentum * velocity
        return _moved(mean, delta, self.learning_rate * ahead)


def _gathered(velocity: Array, momentum: float, delta: Array) -> Array:
    """Add a step to the momentum, in place."""
    velocity *= momentum
    velocity += delta
    return velocity


def _moved(mean: Array, delta: Array, step: Array) -> Array:
    """Return the model a step away; if that is delta itself, the mean, bit for bit."""
    missing = delta - step
    moved: Array = np.where(missing == 0, mean, mean - missing)  # -0.0 - 0.0 is 0.0
    return moved
