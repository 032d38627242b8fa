"""Values that a file holds without naming a class: what ``weights_only`` loads."""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_AS_THEY_ARE = (type(None), bool, int, float, bytes, torch.dtype, torch.device)
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)


def plain(value: Any) -> Any:
    """Return a value as plain data, to be saved: detached, and no more than it shows.

    A tensor of a subclass, as those of MONAI with their metadata, becomes a tensor.

    Raises:
        TypeError: If there is anything in it that is not plain.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, str):  # the keys of MONAI are members of an Enum
        return str(value.value) if isinstance(value, Enum) else str(value)
    if type(value) in _MAPPINGS:
        return _mapping(value)
    if type(value) in (list, tuple, set, torch.Size):
        kind = tuple if type(value) is torch.Size else type(value)
        return kind([plain(one) for one in value])
    if type(value) in _AS_THEY_ARE:
        return value
    msg = f"a {type(value).__name__} is no plain data"
    raise TypeError(msg)


def plain_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that are plain data."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = plain(value)
        except TypeError:
            continue
    return found


def _mapping(value: Any) -> Any:
    items = {plain(key): plain(one) for key, one in value.items()}
    if type(value) is Counter:
        return Counter(items)
    if type(value) is not OrderedDict:
        return items
    found = OrderedDict(items)
    vars(found).update(vars(value))  # a module's has the versions of its parts
    return found


def _tensor(value: Tensor) -> Tensor:
    if isinstance(value, DTensor):
        return value.detach()
    value = value.detach().as_subclass(Tensor)
    whole = value.layout != torch.strided or (
        value.untyped_storage().nbytes() == value.nbytes
    )
    return value if whole else value.clone()  # a view would bring all it is a view of
