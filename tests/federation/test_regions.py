"""The mean by region: the same bits wherever the sums of a region are made."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_core import Contribution, ModelState, Strategy, TensorClass
from flare_core._model import Array
from flare_core.federation import Averaged, FedAvg, FedNova, batches, place

_CLASSES = {"b": TensorClass.BUFFER, "c": TensorClass.CONTROL}
_FLOAT = st.floats(-1e3, 1e3, width=32)
_UPDATES = st.dictionaries(
    st.sampled_from(["a.x", "a.y", "a.z", "a-1.x", "b", "a.q.x", "a.q.y", "c.x.y.z"]),
    st.tuples(_FLOAT, st.integers(1, 1000), st.integers(1, 50)),
    min_size=1,
)
_LAYOUT = ModelState(
    {"w": np.zeros(1, np.float32), "b": np.zeros(1, np.float16), "n": np.zeros(1, int)},
    classes=_CLASSES,
).layout
_PARTS = [part for batch in batches(_LAYOUT) for part in batch]


def _weights(value: float) -> ModelState:
    values: dict[str, npt.ArrayLike] = {
        "w": np.asarray([value], np.float32),
        "b": np.asarray([value / 7], np.float16),
        "n": np.asarray([int(value)]),
    }
    return ModelState(values, classes=_CLASSES)


def _averaged(strategy: Strategy, *, by_region: bool = True) -> Averaged:
    return Averaged(
        _LAYOUT,
        strategy,
        lambda n: memoryview(bytearray(n)),
        map,
        num_sites=9,
        by_region=by_region,
    )


def _said(site: str, num_examples: int, num_steps: int) -> Contribution:
    return Contribution(site=site, num_examples=num_examples, num_steps=num_steps)


def _sums(region: Averaged) -> ModelState:
    """Return what the server of a region would hand in."""
    sums = {part.spec.name: region.sum_of(part) for part in _PARTS}
    return ModelState(sums, classes=_CLASSES)


def _centre(part: object) -> Array:
    raise AssertionError(part)


@pytest.mark.parametrize("strategy", [FedAvg(), FedNova()], ids=["fedavg", "fednova"])
@given(_UPDATES)
def test_a_regions_own_server_changes_no_bit(
    strategy: Strategy, updates: dict[str, tuple[float, int, int]]
) -> None:
    flat, root = _averaged(strategy), _averaged(strategy)
    order = sorted(updates, key=place)
    before = _weights(0.5)
    for site in order:
        value, *counts = updates[site]
        flat.add(_weights(value), _said(site, *counts), before)
    for region in dict.fromkeys(place(site)[0] for site in order):
        members = [site for site in order if place(site)[0] == region]
        if members == [region]:
            value, *counts = updates[region]
            root.add(_weights(value), _said(region, *counts), before)
            continue
        server = _averaged(strategy)
        for site in members:
            value, *counts = updates[site]
            # at its own server a site is called as there
            server.add(_weights(value), _said(site, *counts), before)
        server.complete(_centre)
        said = Contribution(
            site=region,
            num_examples=sum(one.num_examples for one in server.updates),
            members=tuple(server.updates),
            weight=server.tally.total.parameters,
        )
        root.add(_sums(server), said, before)
    for one in (flat, root):
        one.complete(_centre)
    for part in _PARTS:
        assert flat.sum_of(part).tobytes() == root.sum_of(part).tobytes()
    assert flat.tally == root.tally
    assert [one.site for one in flat.updates] == [one.site for one in root.updates]
