"""SCAFFOLD at a site."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from flare_adapters._torch._correction import GradientCorrection, gradients
from flare_adapters._torch._counted import Counted, zeros

_log = logging.getLogger(__name__)
_PREFIX = "scaffold:"
_SETTING = "local.name = 'scaffold'"


@final
@dataclass(slots=True)
class _Control:
    """What is kept of one parameter: three tensors of its size, of float32 or wider.

    Attributes:
        parameter: It.
        own: The site's control.
        shared: The control of all; when a round is over, the mean of the corrected
            gradients, which leaves.
        start: The global model; when a round is over, what the site's control moves by
            if its update counts.
        rate: The sum of the learning rates of the round's steps.
    """

    parameter: Tensor
    own: Tensor
    shared: Tensor
    start: Tensor
    rate: float = 0.0


@final
class Scaffold(GradientCorrection):
    r"""Adds :math:`c - c_i` to the gradients, see `flare_core.Scaffold`.

    In option II the site's control moves by :math:`u_i - c`, where :math:`u_i` is the
    mean of the gradients as they were corrected, :math:`(x - y_i) / \sum \eta`.  So the
    site sends :math:`u_i` beside the model, and the mean of these is the next
    :math:`c`.  The control moves once the server says that the update counted:
    otherwise the mean of the controls would not be :math:`c` any more.
    """

    def __init__(self) -> None:
        self._controls: dict[int, _Control] = {}
        self._names: dict[str, int] = {}
        self._counted = Counted(_SETTING)
        self._seen: set[int] = set()

    @torch.no_grad()
    def beside(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Begin with controls of zero; those of all are exchanged."""
        self._names = {name: id(one) for name, one in parameters.items()}
        self._controls = {
            id(one): _Control(one, zeros(one), zeros(one), zeros(one))
            for one in parameters.values()
        }
        return {
            f"{_PREFIX}{name}": self._controls[key].shared
            for name, key in self._names.items()
        }

    @torch.no_grad()
    def round_started(self, counted: int | None) -> None:
        """Move the site's control if its update counted, and note the global model."""
        moves = self._counted.round_started(counted)
        for one in self._controls.values():
            if moves:
                one.own.add_(one.start)
            one.start.copy_(one.parameter)
            one.rate = 0.0

    @torch.no_grad()
    def adjust(self, optimizer: Optimizer, scale: Tensor | float = 1.0) -> None:
        """Correct the gradients that are about to be used."""
        self._warn_unless_plain(optimizer)
        for key, gradient in gradients(optimizer, self._controls, _SETTING):
            one = self._controls[key]
            gradient.add_((one.shared - one.own) * scale)

    def stepped(self, optimizer: Optimizer) -> None:
        """Add up the learning rates, unless infinite gradients made nothing of it."""
        infinite = getattr(optimizer, "found_inf", None)  # a fused optimizer looks
        if infinite is not None and float(infinite):
            return
        for group in optimizer.param_groups:
            rate = float(group["lr"])
            for one in group["params"]:
                if id(one) in self._controls and one.grad is not None:
                    self._controls[id(one)].rate += rate

    @torch.no_grad()
    def round_ended(self, round_number: int) -> None:
        """Put the mean of the corrected gradients where it leaves."""
        for one in self._controls.values():
            if one.rate:
                mean = (one.start - one.parameter) / one.rate
            else:  # it took no step
                mean = one.shared.clone()
            torch.sub(mean, one.shared, out=one.start)
            one.shared.copy_(mean)
        self._counted.round_ended(round_number)

    def save(self, path: Path) -> None:
        """Write down the controls."""
        self._counted.save(path, self._kept)

    def restore(self, path: Path) -> None:
        """Go back to what was written down."""
        self._counted.restore(path, self._kept)

    @property
    def _kept(self) -> dict[str, Tensor]:
        return {
            f"{name}:{what}": getattr(self._controls[key], what)
            for name, key in self._names.items()
            for what in ("own", "shared", "start")
        }

    def _warn_unless_plain(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._seen:
            return
        self._seen.add(id(optimizer))
        groups = optimizer.param_groups
        plain = isinstance(optimizer, SGD) and not any(
            one["momentum"] or one["maximize"] for one in groups
        )
        if not plain:
            _log.warning(
                "%s is for plain SGD, and %s is something else: "
                "its steps are no multiples of the gradients, so that the controls "
                "are no mean gradients; expected torch.optim.SGD without momentum",
                _SETTING,
                type(optimizer).__name__,
            )
