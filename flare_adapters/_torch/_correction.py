"""Terms that a strategy adds to the gradients at the sites."""

from collections.abc import Iterable
from typing import Protocol, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_core import StrategySettings, UnsupportedError


class GradientCorrection(Protocol):
    """Changes the gradients right before each optimizer step, and nothing else."""

    def round_started(self, parameters: Iterable[Tensor]) -> None:
        """Note the trainable parameters, which hold the global model now."""
        ...

    def adjust(
        self, scale: Tensor | None = None, optimizer: Optimizer | None = None
    ) -> None:
        """Correct the gradients, in place.

        Args:
            scale: What the gradients are multiplied by, if a fused optimizer has
                not unscaled them yet.
            optimizer: The one that is about to step, if there are several; the
                gradients of the others are left alone.
        """
        ...


@final
class FedProx:
    r"""Adds the gradient of :math:`\frac{\mu}{2}\|w - w_t\|^2` (FedProx).

    Li et al., MLSys 2020, equation 2, https://arxiv.org/abs/1812.06127.

    Args:
        mu: Weight of the proximal term.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._anchors: list[tuple[Tensor, Tensor]] = []

    def round_started(self, parameters: Iterable[Tensor]) -> None:
        """Keep a copy of the global model."""
        self._anchors = [(one, one.detach().clone()) for one in parameters]

    @torch.no_grad()
    def adjust(
        self, scale: Tensor | None = None, optimizer: Optimizer | None = None
    ) -> None:
        """Pull each parameter that is about to step towards the global model."""
        stepping = None if optimizer is None else _parameters(optimizer)
        for parameter, anchor in self._anchors:
            if stepping is not None and id(parameter) not in stepping:
                continue
            if parameter.grad is not None:
                pull = parameter.detach() - anchor
                pull = pull if scale is None else pull * scale
                parameter.grad.add_(pull, alpha=self._mu)


def correction(strategy: StrategySettings) -> GradientCorrection | None:
    """Return what the strategy asks of the sites' gradients, if anything."""
    return FedProx(strategy.mu) if strategy.mu > 0 else None


def refuse_under_deepspeed(strategy: StrategySettings) -> None:
    """Raise if the strategy corrects gradients, which DeepSpeed hides.

    DeepSpeed steps inside ``backward`` on master weights of its own, so there is no
    moment at which a gradient could be corrected.

    Raises:
        UnsupportedError: If it does.
    """
    if correction(strategy) is not None:
        msg = (
            f"strategy.mu = {strategy.mu:g} corrects gradients before each optimizer "
            "step, but DeepSpeed steps inside backward(): expected another engine "
            "(DDP, FSDP2) or strategy.mu = 0"
        )
        raise UnsupportedError(msg)


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(one) for group in optimizer.param_groups for one in group["params"]}
