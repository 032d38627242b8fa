"""What tests on a GPU share: when they run, and what they look at there."""

import hashlib
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NEEDS_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)
GPU = "cuda:0"


def places(model: nn.Module) -> set[tuple[str, int]]:
    """Return where the parameters and buffers of a model lie: device and address."""
    return {(str(one.device), one.data_ptr()) for one in tensors(model)}


def tensors(model: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a model."""
    return [*model.parameters(), *model.buffers()]


def on_host(state: Any) -> Any:
    """Return a copy of a tree of values, with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {name: on_host(one) for name, one in state.items()}
    if isinstance(state, (list, tuple)):
        return [on_host(one) for one in state]
    return state


def digest(found: Iterable[Tensor]) -> str:
    """Return a hash of the bytes of some tensors."""
    hashed = hashlib.blake2b()
    for one in found:
        flat = one.detach().cpu().contiguous().reshape(-1)
        hashed.update(flat.view(torch.uint8).numpy())
    return hashed.hexdigest()
