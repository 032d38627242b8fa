"""Lion (Chen et al., 2023, Algorithm 2, https://arxiv.org/abs/2302.06675)."""

from typing import Annotated

import numpy as np
from msgspec import Meta

from flare_core import Strategy


class FedLion(Strategy, frozen=True):
    """Lion at the server: each parameter goes the same way far, up or down.

    Attributes:
        learning_rate: How far each parameter goes in a round, in its own units.
        beta1: Share of the momentum in the direction.
        beta2: Share of the momentum that stays.
    """

    learning_rate: Annotated[float, Meta(gt=0)] = 1e-3
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99

    @property
    def moments(self):
        return {"momentum": 0.0}

    def step(self, part, current, mean, moments):
        delta, momentum = mean - current, moments["momentum"]
        way = np.sign(self.beta1 * momentum + (1 - self.beta1) * delta)
        momentum *= self.beta2  # in place: the server keeps it
        momentum += (1 - self.beta2) * delta
        return current + self.learning_rate * way
