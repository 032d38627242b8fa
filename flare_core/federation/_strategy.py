"""How the mean of the updates becomes the next global model."""

from typing import Protocol, final

from flare_core._model import Array
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
