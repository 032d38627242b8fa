"""What one iteration tells: how many examples it saw, and its loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def num_examples(batch: Any) -> int | None:
    """Return how many examples a batch holds, or None if it does not tell.

    A tensor counts by its first dimension and a structure of tensors by the first of
    them; a list of mappings is one that nobody has collated, or that MONAI has
    decollated again, and counts by its length.  Crops are examples of their own.
    """
    if isinstance(batch, Mapping):
        return _first(list(batch.values()))
    if isinstance(batch, (list, tuple)):
        return _in_list(batch)
    shape = getattr(batch, "shape", ())  # a tensor or an array
    return int(shape[0]) if shape else None


def loss_of(output: Any) -> Tensor | float | None:
    """Return the training loss in what an iteration returned, if it is there.

    That is a scalar, the entry ``loss`` of a mapping, or the same in a decollated
    list, where MONAI has repeated it for each example.
    """
    if isinstance(output, list) and output:
        output = output[0]
    if isinstance(output, Mapping):
        output = output.get("loss")
    if isinstance(output, Tensor):
        return output.reshape(()) if output.numel() == 1 else None
    return float(output) if isinstance(output, (int, float)) else None


def _in_list(batch: Sequence[Any]) -> int | None:
    if batch and all(isinstance(one, Mapping) for one in batch):
        return len(batch)
    if batch and all(_is_list_of_mappings(one) for one in batch):
        return sum(len(one) for one in batch)
    return _first(batch)


def _first(parts: Sequence[Any]) -> int | None:
    counts = (num_examples(one) for one in parts)
    return next((count for count in counts if count is not None), None)


def _is_list_of_mappings(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(one, Mapping) for one in part)
