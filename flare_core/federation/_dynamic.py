"""The server's half of FedDyn."""

from collections.abc import Mapping
from typing import final

from flare_core._model import Array
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Part
from flare_core.federation._strategy import Strategy


@final
class FedDynMean(Strategy, frozen=True):
    r"""The mean of the sites, and beyond it by all that the rounds have moved so far.

    With the mean :math:`m` of the sites, each alike,
    :math:`v \leftarrow v + m - w` and :math:`w \leftarrow m + v`, with :math:`v = 0`
    before the first round: the paper's :math:`h` is :math:`-\alpha v` (Acar et al.,
    ICLR 2021, Algorithm 1, https://arxiv.org/abs/2111.04263).  All sites take part in
    every round.  It is no mean without the sites' half, and so no plan names it.
    """

    @property
    def moments(self) -> Mapping[str, float]:
        """What the rounds have moved."""
        return {"moved": 0.0}

    def weight(self, update: Contribution) -> float:
        """Return the same for all."""
        del update
        return 1.0

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Go beyond the mean."""
        del part
        moved = moments["moved"]
        moved += mean - current
        beyond: Array = mean + moved
        return beyond
