"""The ranks of one site: one of them talks to the server, all of them know."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from flare_core import FlareError, RunAbortedError

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long ranks wait for the slowest site; the default group would die in minutes."""


@final
class Ranks:
    """What the processes of one site agree on.

    Rank 0 may wait long for other sites while the rest wait in a collective, so words
    go over a control group of their own: gloo, with a long timeout.  Weights go over
    the default group.  Make it on all ranks at the same point, after the process
    group is up; alone, everything is trivial.
    """

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized()
        self._size = dist.get_world_size() if several else 1
        self.number: int = dist.get_rank() if self._size > 1 else 0
        self.first = self.number == 0
        self._group = (
            dist.new_group(backend="gloo", timeout=_PATIENCE)
            if self._size > 1
            else None
        )

    def from_first(self, act: Callable[[], T]) -> T:
        """Return on all ranks what `act` returns on rank 0, the only one to run it.

        An exception of it ends all ranks: what is not ours, and may not travel, as
        `RunAbortedError` with its words.
        """
        if self._group is None:
            return act()
        outcome: list[T | BaseException | None] = [None, None]
        if self.first:
            try:
                outcome[0] = act()
            except BaseException as exc:
                outcome[1] = _for_all(exc)
                dist.broadcast_object_list(outcome, src=0, group=self._group)
                raise
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if isinstance(outcome[1], BaseException):
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value] # None only where T is

    def together(self) -> None:
        """Wait until all ranks are here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def total(self, number: int) -> int:
        """Return the sum over the ranks."""
        return sum(self._all(number))

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return each metric's mean over the ranks that have it, all alike."""
        of_ranks = self._all(dict(metrics))
        names = dict.fromkeys(name for one in of_ranks for name in one)
        values = {
            name: [one[name] for one in of_ranks if name in one] for name in names
        }
        return {name: sum(found) / len(found) for name, found in values.items()}

    def share(self, tensor: Tensor | None, like: Tensor) -> Tensor:
        """Return rank 0's tensor on all ranks, bit for bit, whatever its type.

        Args:
            tensor: Wherever it is; on other ranks than the first, none.
            like: One of its type and shape, on the device that copies go to, where
                there are several ranks.
        """
        if self._group is None:
            assert tensor is not None  # noqa: S101 - this is rank 0
            return tensor
        whole = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if tensor is not None:
            whole.copy_(tensor)
        dist.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
        return whole

    def part(self) -> None:
        """End the control group; nothing is agreed on any more.

        A thread of gloo keeps the tensors of its last collective for a moment.  If it
        lets go of them while the interpreter ends, the process is aborted (Python
        before 3.14); ended with the group, it is waited for.
        """
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _all(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        values: list[T] = [value] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return values


def _for_all(error: BaseException) -> BaseException:
    """Return an error that can be sent to the other ranks."""
    if isinstance(error, (FlareError, SystemExit, KeyboardInterrupt)):
        return error
    return RunAbortedError(f"the first rank failed: {type(error).__name__}: {error}")
