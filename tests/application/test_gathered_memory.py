"""Updates that wait for the last one wait in their files."""

import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from flare_core import Aggregation, Contribution, Layout, ModelState, Plan
from flare_core.application._aggregator import Aggregator
from flare_core.application._publication import Publication
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import file_bytes, mapped, pack, unpack, write_file
from flare_core.federation import (
    Bulyan,
    CentredClipping,
    FedAvg,
    GeometricMedian,
    Krum,
    Median,
    NormBounding,
    TrimmedMean,
)

_NUM_SITES = 7
_MODEL_BYTES = 24_000_000
_RULES = [
    Bulyan(),
    Median(),
    TrimmedMean(),
    Krum(),
    GeometricMedian(),
    NormBounding(most_norm=1.0),
    CentredClipping(radius=1.0),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The models of the sites, and the one that they started from."""
    folder = tmp_path_factory.mktemp("models")
    return list(_written(folder))


def _written(folder: Path) -> Iterator[Path]:
    for number in range(_NUM_SITES + 1):
        rng = np.random.default_rng(number)
        values = rng.standard_normal(_MODEL_BYTES // 4, np.float32)
        model, path = ModelState({"w": values}), folder / f"{number}"
        write_file(path, file_bytes(model.layout), pack(model))
        yield path


@pytest.mark.parametrize("rule", _RULES, ids=str)
def test_a_round_takes_less_memory_than_one_model(
    rule: Aggregation, files: list[Path], tmp_path: Path
) -> None:
    *updates, first = [unpack(mapped(path)) for path in files]
    with closing(Worker(lambda _: None, num_threads=2)) as worker:
        aggregator = _aggregator(rule, first.layout, tmp_path, worker)
        tracemalloc.start()
        for number, weights in enumerate(updates):
            said = Contribution(site=f"{number}", num_examples=1)
            aggregator.add(weights, said, first)
        outcome = aggregator.finish(aggregator.first(files[-1], b""))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert isinstance(outcome, Publication)
    assert peak < _MODEL_BYTES


def _aggregator(
    rule: Aggregation, layout: Layout, folder: Path, worker: Worker
) -> Aggregator:
    spool = Spool(folder)
    spool.make()
    return Aggregator(
        Plan(rounds=1),
        layout,
        strategy=FedAvg(),
        rule=rule,
        spool=spool,
        each=worker.each,
    )
