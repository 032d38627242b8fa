"""How the mean of the updates becomes the next global model."""

from typing import Protocol, final

from flare_core._model import Array, ModelState
from flare_core._plan import StrategySettings
from flare_core.federation._fold import Part


class Strategy(Protocol):
    """Moves the global model; found by name in ``flare_core.strategies``."""

    def step(self, part: Part, current: Array, mean: Array) -> Array:
        """Return the next values of some elements of the global model.

        Called once a round for each part of each tensor that is averaged, from any
        thread; counters are not asked about.

        Args:
            part: Which elements.
            current: Their values in the model that the round started from, flat, in
                its type; only to be read.
            mean: The weighted mean of the updates, in float64 or complex128; only to
                be read.

        Returns:
            The next values, in the type of `mean`; they are rounded once.
        """
        ...

    def state(self) -> ModelState:
        """Return what it remembers from round to round, such as moments; or nothing.

        Called after each round; it is kept with the global model, whole, so that a
        server that is started again goes on with it.
        """
        ...

    def restore(self, state: ModelState) -> None:
        """Remember what `state` had returned, before a server was started again.

        Args:
            state: Its arrays are only to be read, and not to be kept.
        """
        ...


@final
class FedAvg:
    """Federated averaging: the mean of the local models is the next global model.

    McMahan et al., AISTATS 2017, Algorithm 1, https://arxiv.org/abs/1602.05629.  With
    ``mu > 0`` the sites add the proximal term of FedProx (Li et al., MLSys 2020,
    equation 2, https://arxiv.org/abs/1812.06127) to their gradients; the server's
    part is the same.
    """

    def __init__(self, settings: StrategySettings) -> None:
        del settings  # mu works at the sites

    def step(self, part: Part, current: Array, mean: Array) -> Array:
        """Return the mean."""
        del part, current
        return mean

    def state(self) -> ModelState:
        """Return nothing: the global model is all that it goes on from."""
        return ModelState({})

    def restore(self, state: ModelState) -> None:
        """Do nothing."""
