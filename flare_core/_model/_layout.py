"""What a model looks like from outside: names, types, shapes and classes."""

import hashlib
import itertools
import math
from enum import StrEnum

import msgspec

from flare_core._model._dtypes import DTYPES, bits_of

_MOST_AXES = 64
"""As NumPy has it."""
_MOST_BYTES = 2**62
_LONGEST_NAME = 1000
"""Names go into messages, records and logs."""


class TensorClass(StrEnum):
    """What a tensor is, and hence what the federation does with it."""

    PARAMETER = "parameter"
    """Averaged; moved by the server optimizer."""
    BUFFER = "buffer"
    """A floating buffer such as a BatchNorm statistic: averaged, never optimised."""
    COUNTER = "counter"
    """An integer, such as ``num_batches_tracked``: the maximum, type kept."""
    CONTROL = "control"
    """What gradients are corrected by, such as SCAFFOLD's: averaged over all sites of
    the run, each alike."""
    LOCAL = "local"
    """Never leaves its site."""


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """Name, type, shape and class of one tensor.

    Attributes:
        name: The name, unique in its model.
        dtype: The type's code in safetensors, e.g. ``"BF16"``; of a tensor that never
            leaves its site, any name.
        shape: The extent of each axis; empty for a scalar.
        kind: The tensor's class.

    Raises:
        ValueError: If safetensors has no such type, an extent is negative, or the
            name is too long or the one that safetensors keeps for itself.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: TensorClass = TensorClass.PARAMETER

    def __post_init__(self) -> None:
        if len(self.name) > _LONGEST_NAME:
            msg = (
                f"tensor {self.name[:40]!r}...: its name has {len(self.name):,} "
                f"characters, more than {_LONGEST_NAME:,}"
            )
            raise ValueError(msg)
        if self.dtype not in DTYPES and self.kind is not TensorClass.LOCAL:
            msg = f"tensor {self.name!r}: no such type as {self.dtype!r}"
            raise ValueError(msg)
        if len(self.shape) > _MOST_AXES:
            msg = f"tensor {self.name!r}: has {len(self.shape)} axes, not {_MOST_AXES}"
            raise ValueError(msg)
        if any(extent < 0 for extent in self.shape):
            msg = f"tensor {self.name!r}: an extent of {self.shape} is negative"
            raise ValueError(msg)
        if self.num_elements >= _MOST_BYTES:
            msg = f"tensor {self.name!r}: no memory holds {self.shape} elements"
            raise ValueError(msg)
        if self.name == "__metadata__":
            msg = "no tensor can be called '__metadata__' in a safetensors file"
            raise ValueError(msg)

    @property
    def num_elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes of its data in a safetensors file; 0 if it has no place there."""
        bits = bits_of(self.dtype) if self.dtype in DTYPES else 0
        return self.num_elements * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """The tensors of a model, in the order in which they travel.

    Attributes:
        tensors: Larger element types first, then by name, so that every tensor is
            aligned in a safetensors file and no site's own order matters.

    Raises:
        ValueError: If they come in another order, a name comes twice, or one is said
            never to leave its site.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.tensors):
            msg = "a layout may name each tensor once only"
            raise ValueError(msg)
        if self.num_bytes >= _MOST_BYTES:
            msg = f"no memory holds {self.num_bytes} bytes"
            raise ValueError(msg)
        for tensor in self.tensors:
            if tensor.kind is TensorClass.LOCAL:
                msg = f"tensor {tensor.name!r} never leaves its site, and yet is here"
                raise ValueError(msg)
        for before, after in itertools.pairwise(self.tensors):
            if _wire_order(before) > _wire_order(after):
                msg = f"layout: {after.name!r} may not follow {before.name!r}"
                raise ValueError(msg)

    @property
    def of_sums(self) -> "Layout":
        """What sums of such models look like, with floats in float64.

        Raises:
            ValueError: If a tensor is complex: no file holds its sums.
        """
        return in_wire_order([_summed(spec) for spec in self.tensors])

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
    return Layout(tuple(sorted(tensors, key=_wire_order)))


def _summed(spec: TensorSpec) -> TensorSpec:
    if spec.kind is TensorClass.COUNTER:
        return spec
    if DTYPES[spec.dtype].kind == "c":
        msg = (
            f"tensor {spec.name!r} is complex ({spec.dtype}), and the sums of a region "
            'cannot travel; take topology.name = "star"'
        )
        raise ValueError(msg)
    return msgspec.structs.replace(spec, dtype="F64")


def _wire_order(spec: TensorSpec) -> tuple[int, str]:
    return -DTYPES[spec.dtype].itemsize, spec.name
