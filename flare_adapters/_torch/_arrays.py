"""Tensors of torch as arrays of NumPy and back, bit for bit, without a copy."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flare_core import DTYPES

Array: TypeAlias = npt.NDArray[Any]

_CODES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}


def code_of(name: str, tensor: Tensor) -> str:
    """Return the safetensors code of a tensor's type.

    Raises:
        TypeError: If the tensor cannot travel; it is named.
    """
    code = _CODES.get(tensor.dtype)
    if code is None or tensor.layout != torch.strided or tensor.is_meta:
        kind = "meta" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
        msg = (
            f"tensor {name!r} ({kind}) cannot be exchanged; leave it at the site, e.g. "
            f'by select=["*", "!{name}"], or materialise it as a dense float tensor'
        )
        raise TypeError(msg)
    return code


def to_array(name: str, tensor: Tensor) -> Array:
    """Return the tensor as an array: a view of its memory if it is dense on the CPU.

    Raises:
        TypeError: If the tensor cannot travel; it is named.
    """
    dtype = DTYPES[code_of(name, tensor)]
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: Array = flat.view(torch.uint8).numpy()
    return raw.view(dtype).reshape(tuple(tensor.shape))


def to_tensors(
    arrays: Mapping[str, Array], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the arrays as tensors of `like`'s types: views, only to be read."""
    with warnings.catch_warnings():
        # torch warns of read-only memory; it is only copied from
        warnings.simplefilter("ignore", UserWarning)
        return {name: _to_tensor(one, like[name]) for name, one in arrays.items()}


def _to_tensor(array: Array, like: Tensor) -> Tensor:
    raw = torch.from_numpy(np.atleast_1d(array).reshape(-1).view(np.uint8))
    return raw.view(like.dtype).reshape(array.shape)
