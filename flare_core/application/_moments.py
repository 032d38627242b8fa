"""What a strategy remembers of each parameter, in a file beside each global model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final

import numpy as np

from flare_core._errors import ConfigurationError
from flare_core._model import (
    DTYPES,
    Array,
    Layout,
    ModelState,
    TensorClass,
    TensorSpec,
    accumulator_dtype,
    in_wire_order,
)
from flare_core.application._publication import Memory
from flare_core.application._run_store import digest_of
from flare_core.application._spool import Spool
from flare_core.communication import (
    ReceivedFile,
    body,
    file_bytes,
    header,
    mapped,
    unpack,
)
from flare_core.federation import Part

_KEPT_AS = {"F64": "F64", "C64": "C64"}
"""Type of the moments of a tensor by its own, where it is not float32."""


@final
class Moments:
    """Those of one round: read from the file of the round before, written to another.

    The file has a tensor for each parameter, by its name: a row for each moment.  The
    parts are independent, and nothing of them stays in memory.

    Args:
        layout: Of the global model.
        initial: What each moment is before the first round, by its name; at least one.
        before: The file of the round before; None if this is the first one.
        spool: For the file to write; it gets its name when all was kept.

    Raises:
        ConfigurationError: If there is no room for it, or the file of the round before
            is of another strategy.
    """

    def __init__(
        self,
        layout: Layout,
        initial: Mapping[str, float],
        before: Memory | None,
        spool: Spool,
    ) -> None:
        self._initial = initial
        self._spool = spool
        tensors = in_wire_order(list(_tensors(layout, len(initial))))
        self._before = None if before is None else _read(before.path, tensors)
        self._offsets = dict(_offsets(tensors))
        self._file = ReceivedFile(spool.unfinished("memory"), file_bytes(tensors))
        self._file.write(0, [header(tensors.tensors)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def of(self, part: Part) -> dict[str, Array]:
        """Return a part's moments, by name, in the type in which it is averaged."""
        wide = accumulator_dtype(DTYPES[part.spec.dtype])
        size = part.stop - part.start
        if self._before is None:
            reals = size * wide.itemsize // np.dtype(np.float64).itemsize
            return {
                name: np.full(reals, at).view(wide)
                for name, at in self._initial.items()
            }
        rows = self._before[part.spec.name][:, part.start : part.stop]
        return {
            name: row.astype(wide)
            for name, row in zip(self._initial, rows, strict=True)
        }

    def keep(self, part: Part, moments: Mapping[str, Array]) -> bool:
        """Write a part's moments; return whether all of them are finite."""
        name, num_elements = part.spec.name, part.spec.num_elements
        spec, offset = self._offsets[name]
        dtype = DTYPES[spec.dtype]
        finite = True
        for row, of in enumerate(self._initial):
            with np.errstate(over="ignore"):
                values = moments[of].astype(dtype)
            finite = finite and bool(np.isfinite(values).all())
            place = offset + (row * num_elements + part.start) * dtype.itemsize
            self._file.write(place, [body(spec, values)])
        return finite

    def finish(self) -> Memory:
        """Return the file, once all parts were kept."""
        digest = digest_of(self._file.path)
        path = self._spool.memory(digest)
        self._spool.put(self._file.path, path)
        return Memory(path, digest)


def _tensors(layout: Layout, num_moments: int) -> Iterator[TensorSpec]:
    for spec in layout.tensors:
        if spec.kind is TensorClass.PARAMETER:
            dtype = _KEPT_AS.get(spec.dtype, "F32")
            yield TensorSpec(spec.name, dtype, (num_moments, spec.num_elements))


def _offsets(layout: Layout) -> Iterator[tuple[str, tuple[TensorSpec, int]]]:
    """Yield each tensor by its name, with the place where it begins in the file."""
    offset = len(header(layout.tensors))
    for spec in layout.tensors:
        yield spec.name, (spec, offset)
        offset += spec.num_bytes


def _read(path: Path, expected: Layout) -> ModelState:
    found = unpack(mapped(path))
    if found.layout != expected:
        msg = (
            f"{path} is not what this strategy and aggregation remember of this model: "
            "was one of them changed, or is its package another version than when the "
            "run began? put that version back, or stop the run"
        )
        raise ConfigurationError(msg)
    return found
