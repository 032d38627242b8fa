"""What a strategy remembers is the same in the next round, and after a restart."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_core import ConfigurationError, ModelState, Part, TensorClass
from flare_core._model import Array
from flare_core.application._moments import Moments
from flare_core.application._publication import Memory
from flare_core.application._spool import Spool
from flare_core.communication import mapped, unpack
from flare_core.federation import Fold

_INITIAL = {"first": 0.0, "second": 0.25}


def _model(**arrays: npt.ArrayLike) -> ModelState:
    return ModelState(arrays, classes={"running": TensorClass.BUFFER})


_MODEL = _model(
    narrow=np.zeros(5, np.float16),
    single=np.zeros((300, 500), np.float32),
    double=np.zeros((2, 3)),
    phase=np.zeros(4, np.complex64),
    empty=np.zeros((0, 3), np.float32),
    scalar=np.float32(0),
    running=np.zeros(3, np.float32),
    count=np.int64(0),
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Where the files are."""
    return _made(tmp_path)


def _made(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.make()
    return spool


def _parts(model: ModelState) -> Iterator[Part]:
    for batch in Fold(model.layout).batches:
        for part in batch:
            if part.spec.kind is TensorClass.PARAMETER:
                yield part


def _round(
    model: ModelState, before: Memory | None, spool: Spool, add: float
) -> tuple[Memory, dict[tuple[str, int], dict[str, Array]]]:
    """Add to all moments; return their file, and what they were before."""
    were: dict[tuple[str, int], dict[str, Array]] = {}
    with Moments(model.layout, _INITIAL, before, spool) as moments:
        for part in _parts(model):
            were[part.spec.name, part.start] = moments.of(part)
            more = {name: old + add for name, old in moments.of(part).items()}
            assert moments.keep(part, more)
    return moments.finish(), were


def test_they_begin_as_the_strategy_says_and_go_on_as_they_were_left(
    spool: Spool,
) -> None:
    first, at_first = _round(_MODEL, None, spool, 0.5)
    _, then = _round(_MODEL, first, spool, 0.5)

    assert at_first.keys() == then.keys()
    assert ("single", 1 << 17) in then  # a second part of one tensor
    for name, begun in _INITIAL.items():
        for key, part in at_first.items():
            both = begun * (1 + 1j) if key[0] == "phase" else begun
            assert (part[name] == both).all()
            assert (then[key][name] == both + 0.5).all()


def test_they_take_a_float32_model_each_or_that_of_a_type_that_is_wider(
    spool: Spool,
) -> None:
    memory, _ = _round(_MODEL, None, spool, 1.0)

    kept = unpack(mapped(memory.path))
    types = {name: (array.dtype.name, array.shape) for name, array in kept.items()}
    assert types == {
        "narrow": ("float32", (2, 5)),
        "single": ("float32", (2, 150_000)),
        "double": ("float64", (2, 6)),
        "phase": ("complex64", (2, 4)),
        "empty": ("float32", (2, 0)),
        "scalar": ("float32", (2, 1)),
    }


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4))
def test_those_of_float64_tensors_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    model = _model(w=np.zeros(len(values)))
    [part] = _parts(model)
    spool = _made(tmp_path_factory.mktemp("moments"))
    exact = np.array(values)

    with Moments(model.layout, {"m": 0.0}, None, spool) as moments:
        assert moments.keep(part, {"m": exact})
    with Moments(model.layout, {"m": 0.0}, moments.finish(), spool) as moments:
        found = moments.of(part)["m"]

    assert found.tobytes() == exact.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_one_that_is_not_finite_where_it_is_kept_is_told(
    spool: Spool, value: float
) -> None:
    model = _model(w=np.zeros(3, np.float32))
    [part] = _parts(model)

    with Moments(model.layout, {"m": 0.0}, None, spool) as moments:
        assert not moments.keep(part, {"m": np.array([0.0, value, 0.0])})


def test_the_file_gets_its_name_when_all_is_kept(spool: Spool) -> None:
    with Moments(_MODEL.layout, _INITIAL, None, spool) as moments:
        for part in _parts(_MODEL):
            moments.keep(part, moments.of(part))
        assert not list(spool.folder.rglob("*.memory"))
    memory = moments.finish()

    assert list(spool.folder.rglob("*.memory")) == [memory.path]
    assert memory.path == spool.memory(memory.digest)


def test_those_of_another_strategy_are_refused(spool: Spool) -> None:
    memory, _ = _round(_MODEL, None, spool, 1.0)

    with pytest.raises(ConfigurationError, match="y is not what this strategy and"):
        Moments(_MODEL.layout, {"only": 0.0}, memory, spool)
