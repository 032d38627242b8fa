"""Which of a site's updates counted, for what it keeps from round to round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from flare_core import ConfigurationError, UnsupportedError

_NONE = -1


@final
class Counted:
    """Tells when what a site has learnt of its last round is to be kept.

    The server may have gone on without the update, and only later says so.

    Args:
        setting: What of the plan needs to know it, for errors.
    """

    def __init__(self, setting: str) -> None:
        self._setting: Final = setting
        self._trained = self._counted = _NONE

    def round_started(self, counted: int | None) -> bool:
        """Return whether the round that was trained last counts, from now on.

        Args:
            counted: As `flare_core.GlobalModel` has it.

        Raises:
            UnsupportedError: If the link does not say what counted.
            ConfigurationError: If an update counted that this site knows nothing of.
        """
        if counted is None:
            msg = (
                f"{self._setting} needs to know which updates counted, and this link "
                "to the server does not say: expected the link 'zmq', or another one "
                "that sets GlobalModel.counted"
            )
            raise UnsupportedError(msg)
        if counted > max(self._trained, self._counted):
            msg = (
                f"the update of this site counted in round {counted}, and what it kept "
                f"for {self._setting} is gone: without it no later round would be "
                "right; put the folder of its round checkpoint back, or begin the run "
                "anew"
            )
            raise ConfigurationError(msg)
        moves = counted == self._trained != self._counted
        self._counted = counted
        return moves

    def round_ended(self, round_number: int) -> None:
        """Note that a round was trained."""
        self._trained = round_number

    def save(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write down what is kept, this rank's part of it."""
        rounds = {"trained": self._trained, "counted": self._counted}
        parts = {name: _part(one) for name, one in tensors.items()}
        torch.save({"rounds": rounds, "tensors": parts}, path)

    @torch.no_grad()
    def restore(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Read what was written down into the tensors.

        Raises:
            ConfigurationError: If that was another model's.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            for name, one in tensors.items():
                _part(one).copy_(saved["tensors"][name])
        except (OSError, KeyError, RuntimeError) as exc:
            msg = (
                f"round checkpoint {path}: expected what {self._setting} keeps of this "
                f"model, got {exc}; start the same script as before, with as many "
                "processes"
            )
            raise ConfigurationError(msg) from exc
        self._trained = saved["rounds"]["trained"]
        self._counted = saved["rounds"]["counted"]


def zeros(parameter: Tensor) -> Tensor:
    """Return zeros like a parameter, of float32 or wider."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(parameter, dtype=wide, requires_grad=False)


def _part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
