"""How the mean of the updates becomes the next global model."""

from typing import Protocol, final

from flare_core._model import ModelState
from flare_core._plan import StrategySettings


class Strategy(Protocol):
    """Moves the global model; found by name in ``flare_core.strategies``."""

    def next_model(self, current: ModelState, mean: ModelState) -> ModelState:
        """Return the next global model.

        Args:
            current: The global model that the round started from.
            mean: The weighted mean of the updates, with the same layout.
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

    def next_model(self, current: ModelState, mean: ModelState) -> ModelState:
        """Return the mean."""
        del current
        return mean
