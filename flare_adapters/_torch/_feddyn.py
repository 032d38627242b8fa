"""FedDyn at a site."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_adapters._torch._correction import GradientCorrection, gradients
from flare_adapters._torch._counted import Counted, zeros


@final
@dataclass(frozen=True, slots=True)
class _Term:
    """What is kept of one parameter: two tensors of its size, of float32 or wider.

    Attributes:
        parameter: It.
        own: The gradient of the site's loss where its last round ended, as it is known
            there.
        start: The global model; when a round is over, what `own` moves by if the
            update counts.
    """

    parameter: Tensor
    own: Tensor
    start: Tensor


@final
class Dynamic(GradientCorrection):
    r"""Adds :math:`\alpha (w - x) - h_i` to the gradients, see `flare_core.FedDyn`.

    Args:
        alpha: Weight of the pull to the global model.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._setting = f"local.alpha = {alpha:g}"
        self._terms: dict[int, _Term] = {}
        self._names: dict[str, int] = {}
        self._counted = Counted("local.name = 'feddyn'")

    @torch.no_grad()
    def beside(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Begin with nothing known; nothing more is exchanged."""
        self._names = {name: id(one) for name, one in parameters.items()}
        self._terms = {
            id(one): _Term(one, zeros(one), zeros(one)) for one in parameters.values()
        }
        return {}

    @torch.no_grad()
    def round_started(self, counted: int | None) -> None:
        """Move what is known if the update counted, and note the global model."""
        moves = self._counted.round_started(counted)
        for one in self._terms.values():
            if moves:
                one.own.add_(one.start)
            one.start.copy_(one.parameter)

    @torch.no_grad()
    def adjust(self, optimizer: Optimizer, scale: Tensor | float = 1.0) -> None:
        """Correct the gradients that are about to be used."""
        for key, gradient in gradients(optimizer, self._terms, self._setting):
            one = self._terms[key]
            pull = (one.parameter - one.start) * self._alpha
            gradient.add_((pull - one.own) * scale)

    @torch.no_grad()
    def round_ended(self, round_number: int) -> None:
        """Note what becomes known with the round."""
        for one in self._terms.values():
            one.start.sub_(one.parameter).mul_(self._alpha)
        self._counted.round_ended(round_number)

    def save(self, path: Path) -> None:
        """Write down what is known."""
        self._counted.save(path, self._kept)

    def restore(self, path: Path) -> None:
        """Go back to what was written down."""
        self._counted.restore(path, self._kept)

    @property
    def _kept(self) -> dict[str, Tensor]:
        return {
            f"{name}:{what}": getattr(self._terms[key], what)
            for name, key in self._names.items()
            for what in ("own", "start")
        }
