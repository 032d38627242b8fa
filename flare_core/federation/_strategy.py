"""How what the updates make becomes the next global model."""

from collections.abc import Mapping, Sequence
from typing import final

import msgspec

from flare_core._errors import Refusal
from flare_core._model import Array
from flare_core.federation._contribution import Contribution
from flare_core.federation._fold import Part


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Moves the global model; found by name in ``flare_core.strategies``.

    A strategy is its settings: the fields of the class are what a plan may say under
    ``[strategy.settings]``, with their types, limits and defaults, and their words
    under *Attributes* in the docstring.  It has no state of its own, so that parts can
    be worked on by several threads; what it remembers from round to round are its
    `moments`, which the server keeps.

    What a class does not define, is that of federated averaging.
    """

    @property
    def moments(self) -> Mapping[str, float]:
        """What is remembered of each element of each parameter, by name.

        The value is what it is before the first round, in a complex tensor for both
        parts of each element.  A moment of a float64 tensor
        is kept in float64, of a complex one in its own type, and of any other in
        float32: so each takes as much room as a float32 model, on the server's disk.
        """
        return {}

    @property
    def measures(self) -> bool:
        """Whether `reach` needs the length of each update: a pass over each."""
        return False

    def refusal(self, update: Contribution) -> Refusal | None:
        """Return what an update lacks to be weighed, or None if it lacks nothing.

        Args:
            update: Before it is measured.
        """
        del update
        return None

    def weight(self, update: Contribution) -> float:
        """Return the weight of an update's parameters, relative to others; not below 0.

        Buffers are weighed by examples, whatever this says.

        Args:
            update: One that was not refused, before it is measured.
        """
        return update.num_examples

    def reach(self, updates: Sequence[Contribution]) -> float:
        """Return how far to go from the current model; 1 is as far as to the mean.

        Args:
            updates: All of the round, by site.
        """
        del updates
        return 1.0

    def step(
        self, part: Part, current: Array, mean: Array, moments: Mapping[str, Array]
    ) -> Array:
        """Return the next values of some elements of a parameter.

        Called once a round for each part of each parameter, from any thread.  Buffers
        take their mean and counters their maximum without being asked about.

        Args:
            part: Which elements.
            current: Their values in the model that the round started from, flat, in
                its type; only to be read.
            mean: The weighted mean of the updates, in float64 or complex128, or what
                `reach` made of it, or another `Aggregation` of them; only to be read.
            moments: What is remembered of these elements, in the type of ``mean``; to
                be changed in place, and rounded once when it is kept.

        Returns:
            The next values, in the type of ``mean``; they are rounded once.
        """
        del part, current, moments
        return mean


@final
class FedAvg(Strategy, frozen=True):
    """Federated averaging: the mean of the local models is the next global model.

    McMahan et al., AISTATS 2017, Algorithm 1, https://arxiv.org/abs/1602.05629.
    """
