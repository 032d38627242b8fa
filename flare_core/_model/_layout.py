"""What a model looks like from outside: names, types, shapes and classes."""

import hashlib
import math
from enum import StrEnum

import msgspec

from flare_core._model._dtypes import DTYPES, bits_of


class TensorClass(StrEnum):
    """What a tensor is, and hence what the federation does with it."""

    PARAMETER = "parameter"
    """Averaged; moved by the server optimizer."""
    BUFFER = "buffer"
    """A floating buffer such as a BatchNorm statistic: averaged, never optimised."""
    COUNTER = "counter"
    """An integer, such as ``num_batches_tracked``: the maximum, type kept."""
    LOCAL = "local"
    """Never leaves its site."""


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """Name, type, shape and class of one tensor.

    Attributes:
        name: The name, unique in its model.
        dtype: The type's code in safetensors, e.g. ``"BF16"``.
        shape: The extent of each axis; empty for a scalar.
        kind: The tensor's class.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: TensorClass = TensorClass.PARAMETER

    @property
    def num_elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes of its data in a safetensors file."""
        return self.num_elements * bits_of(self.dtype) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """The tensors of a model, in the order in which they travel.

    Attributes:
        tensors: Larger element types first, then by name, so that every tensor is
            aligned in a safetensors file and no site's own order matters.
    """

    tensors: tuple[TensorSpec, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of all names, types, shapes and classes, in hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @property
    def classes(self) -> dict[str, TensorClass]:
        """Class of each tensor, by name."""
        return {tensor.name: tensor.kind for tensor in self.tensors}

    @property
    def num_bytes(self) -> int:
        """The bytes of all data in a safetensors file."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def in_wire_order(tensors: list[TensorSpec]) -> Layout:
    """Return the layout of these tensors, in the order in which they travel."""
    key = lambda spec: (-DTYPES[spec.dtype].itemsize, spec.name)  # noqa: E731
    return Layout(tuple(sorted(tensors, key=key)))
