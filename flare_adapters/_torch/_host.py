"""Memory of the host that the weights on a GPU leave from, the same in every round."""

from typing import final

import torch
from torch import Tensor


@final
class Host:
    """Takes tensors to the host's memory.

    What is there already is used as it is: a view.  What is on a GPU is copied into
    pinned memory that is allocated once, so the GPU copies one tensor behind the other,
    and the host waits once, for all of them.  Torch rounds each tensor's memory up to a
    power of two; one block for all would be rounded up as well, and by more at worst.
    """

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}
        self._devices: set[torch.device] = set()

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor on the host, to be read after `wait`, until taken again."""
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            return tensor.cpu()
        pinned = self._pinned.get(name)
        if pinned is None or not _fits(pinned, tensor):
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._pinned[name] = pinned
        self._devices.add(tensor.device)
        return pinned.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait until all that was taken is here."""
        for device in self._devices:
            torch.cuda.synchronize(device)
        self._devices.clear()


def _fits(pinned: Tensor, tensor: Tensor) -> bool:
    return pinned.shape == tensor.shape and pinned.dtype == tensor.dtype
