"""Terms that a plan adds to the gradients at the sites."""

from collections.abc import Iterable
from typing import Protocol, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_core import FedProx, Local, UnsupportedError


class GradientCorrection(Protocol):
    """Changes the gradients right before each optimizer step, and nothing else."""

    def round_started(self, parameters: Iterable[Tensor]) -> None:
        """Note the trainable parameters, which hold the global model now."""
        ...

    def adjust(self, optimizer: Optimizer, scale: Tensor | float = 1.0) -> None:
        """Correct the gradients, in place.

        Args:
            optimizer: The one that is about to step; the gradients of others are left
                alone.
            scale: What the gradients are multiplied by, if a fused optimizer has not
                unscaled them yet.
        """
        ...


@final
class Proximal:
    r"""Adds the gradient of :math:`\frac{\mu}{2}\|w - w_t\|^2`, see `FedProx`.

    Args:
        mu: Weight of the proximal term.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._anchors: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def round_started(self, parameters: Iterable[Tensor]) -> None:
        """Keep a copy of the global model, in the memory of the one before."""
        kept = {id(one): anchor for one, anchor in self._anchors}
        self._anchors = [
            (one, kept[id(one)].copy_(one) if id(one) in kept else one.clone())
            for one in parameters
        ]

    @torch.no_grad()
    def adjust(self, optimizer: Optimizer, scale: Tensor | float = 1.0) -> None:
        """Pull each parameter that is about to step towards the global model.

        Raises:
            UnsupportedError: If a gradient is sparse: the pull is not.
        """
        stepping = _parameters(optimizer)
        for parameter, anchor in self._anchors:
            if id(parameter) not in stepping or parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                msg = (
                    f"local.mu = {self._mu:g} cannot correct the sparse gradient of "
                    f"a parameter of shape {tuple(parameter.shape)}: expected dense "
                    "ones, e.g. Embedding(sparse=False), or local.mu = 0"
                )
                raise UnsupportedError(msg)
            pull = (parameter.detach() - anchor) * scale
            parameter.grad.add_(pull, alpha=self._mu)


def correction(local: Local) -> GradientCorrection | None:
    """Return what the plan adds to the sites' gradients, if anything."""
    match local:
        case FedProx(mu=mu) if mu > 0:
            return Proximal(mu)
        case _:
            return None


def refuse_deepspeed(local: Local) -> None:
    """Raise: under DeepSpeed neither weights nor gradients are what they seem.

    It trains master weights of its own and steps inside ``backward``.

    Raises:
        UnsupportedError: Always.
    """
    instead = "expected another engine (DDP, FSDP2)"
    if correction(local) is not None:
        msg = (
            f"the plan's {local} corrects gradients before each optimizer step, but "
            f"DeepSpeed steps inside backward(): {instead}"
        )
        raise UnsupportedError(msg)
    msg = (
        "DeepSpeed keeps master weights of its own, which overwrite the global model "
        f"at the next step: {instead}"
    )
    raise UnsupportedError(msg)


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(one) for group in optimizer.param_groups for one in group["params"]}
