"""The values of a model: names to arrays, with a layout."""

from collections.abc import Iterator, Mapping
from typing import final

import numpy as np
import numpy.typing as npt

from flare_core._model._dtypes import Array, code_of, is_counter
from flare_core._model._layout import Layout, TensorClass, TensorSpec, in_wire_order


@final
class ModelState(Mapping[str, Array]):
    """The tensors of a model by name.

    Every element type of safetensors keeps its bits, bfloat16 and float8 too (as
    arrays of ``ml_dtypes``).  Arrays are taken as they are, without a copy, where
    they are little-endian and C-contiguous: do not write to them while the state is
    in use.

    Args:
        tensors: Arrays, or what NumPy makes an array of, by name.
        classes: Class of a tensor by name; by default those of the first argument if
            that is a state already.  The rest are parameters; integers and booleans are
            always counters.

    Raises:
        TypeError: If a tensor's type has no place in safetensors; it is named.
    """

    __slots__ = ("_arrays", "layout")

    def __init__(
        self,
        tensors: Mapping[str, npt.ArrayLike],
        *,
        classes: Mapping[str, TensorClass] | None = None,
    ) -> None:
        arrays = {name: _little_endian(value) for name, value in tensors.items()}
        if classes is None:
            classes = tensors.layout.classes if isinstance(tensors, ModelState) else {}
        specs = [
            _spec(name, array, classes.get(name, TensorClass.PARAMETER))
            for name, array in arrays.items()
        ]
        self.layout: Layout = in_wire_order(specs)
        self._arrays = {spec.name: arrays[spec.name] for spec in self.layout.tensors}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        """Tell whether layout and every bit are the same."""
        if not isinstance(other, ModelState):
            return NotImplemented
        return self.layout == other.layout and all(
            array.tobytes() == other[name].tobytes() for name, array in self.items()
        )

    __hash__ = None  # type: ignore[assignment] # as all that is compared by content

    def __repr__(self) -> str:
        return f"<ModelState: {len(self)} tensors, {self.layout.num_bytes:,} bytes>"


def _little_endian(value: npt.ArrayLike) -> Array:
    array = np.asarray(value, order="C")
    if array.dtype.byteorder == ">":
        return array.astype(array.dtype.newbyteorder("<"))
    return array


def _spec(name: str, array: Array, kind: TensorClass) -> TensorSpec:
    try:
        code = code_of(array.dtype)
    except TypeError as exc:
        msg = f"tensor {name!r}: {exc}"
        raise TypeError(msg) from None
    kind = TensorClass.COUNTER if is_counter(array.dtype) else kind
    return TensorSpec(name, code, array.shape, kind)
