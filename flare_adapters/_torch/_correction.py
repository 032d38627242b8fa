"""Terms that a plan adds to the gradients at the sites."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import final

from torch import Tensor
from torch.optim import Optimizer

from flare_core import UnsupportedError


class GradientCorrection:
    """Changes the gradients right before each optimizer step, and nothing else.

    It is the site's own, on each rank of it.  This one changes nothing: what a class
    does not define, need not be done.

    Attributes:
        corrects: Whether `adjust` does anything.
    """

    corrects = True

    def beside(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the parameters that are trained and exchanged, by name on the wire.

        Returns:
            What is exchanged beside them, by name on the wire.  The tensors are filled
            with what comes of the server before a round starts, and what they hold
            when it is over leaves.
        """
        del parameters
        return {}

    def round_started(self, counted: int | None) -> None:
        """Begin a round: the parameters hold the global model now.

        Args:
            counted: The last round that the site's update counted in, as
                `flare_core.GlobalModel` has it.
        """

    def adjust(self, optimizer: Optimizer, scale: Tensor | float = 1.0) -> None:
        """Correct the gradients, in place.

        Args:
            optimizer: The one that is about to step; the gradients of others are left
                alone.
            scale: What the gradients are multiplied by, if a fused optimizer has not
                unscaled them yet.
        """

    def stepped(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped; its gradients are still there."""

    def round_ended(self, round_number: int) -> None:
        """End a round: the parameters hold the local model now."""

    def save(self, path: Path) -> None:
        """Write down what the site keeps from round to round, when one has ended."""

    def restore(self, path: Path) -> None:
        """Go back to what was written down."""


@final
class NoCorrection(GradientCorrection):
    """The plan adds nothing."""

    corrects = False


def gradients(
    optimizer: Optimizer, known: Collection[int], setting: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield the gradients that a step is about to use, by the parameter's id.

    Args:
        optimizer: Whose step it is.
        known: The ids of the parameters that are looked for.
        setting: What corrects them, for the error.

    Raises:
        UnsupportedError: If one is sparse: what is added is not.
    """
    for group in optimizer.param_groups:
        for one in group["params"]:
            if id(one) not in known or one.grad is None:
                continue
            if one.grad.is_sparse:
                msg = (
                    f"{setting} cannot correct the sparse gradient of a parameter of "
                    f"shape {tuple(one.shape)}: expected dense ones, e.g. "
                    'Embedding(sparse=False), or local.name = "none"'
                )
                raise UnsupportedError(msg)
            yield id(one), one.grad
