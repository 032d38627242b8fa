"""FedProx at a site."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_adapters._torch._correction import GradientCorrection, gradients


@final
class Proximal(GradientCorrection):
    r"""Adds the gradient of :math:`\frac{\mu}{2}\|w - w_t\|^2`, see `FedProx`.

    Args:
        mu: Weight of the proximal term.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._anchors: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def beside(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make room for the global model; nothing more is exchanged."""
        self._anchors = {id(one): (one, one.clone()) for one in parameters.values()}
        return {}

    @torch.no_grad()
    def round_started(self, counted: int | None) -> None:
        """Keep a copy of the global model."""
        del counted
        for parameter, anchor in self._anchors.values():
            anchor.copy_(parameter)

    @torch.no_grad()
    def adjust(self, optimizer: Optimizer, scale: Tensor | float = 1.0) -> None:
        """Pull each parameter that is about to step towards the global model."""
        setting = f"local.mu = {self._mu:g}"
        for key, gradient in gradients(optimizer, self._anchors, setting):
            parameter, anchor = self._anchors[key]
            pull = (parameter.detach() - anchor) * scale
            gradient.add_(pull, alpha=self._mu)
