"""How many examples a batch holds."""

from collections.abc import Mapping, Sequence
from typing import Any


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
