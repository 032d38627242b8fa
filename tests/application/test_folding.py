"""The next model and what the strategy remembers do not depend on who comes first."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare_core import Aggregation, Contribution, ModelState, Plan, Strategy
from flare_core.application._aggregator import Aggregator
from flare_core.application._folding import Folding
from flare_core.application._publication import Publication
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import file_bytes, pack, write_file
from flare_core.federation import (
    CentredClipping,
    DiLoCo,
    FedAdam,
    FedAvg,
    FedNova,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NormBounding,
    QFedAvg,
    Round,
    TrimmedMean,
)

_Way: TypeAlias = tuple[Strategy, Aggregation]
_PLAN = Plan(rounds=1)
_SITES = ("a", "b", "c", "d", "e")
_STRATEGIES = (FedAvg(), FedAdam(), DiLoCo(), FedNova(), QFedAvg(learning_rate=0.1))
_RULES = (
    CentredClipping(radius=1e9, iterations=3),
    GeometricMedian(by_examples=True),
    Krum(),
    Median(),
    MultiKrum(),
    NormBounding(most_norm=1e8),
    TrimmedMean(hostile=2),
)
_WAYS = [
    *((strategy, Mean()) for strategy in _STRATEGIES),
    *((FedAdam(), rule) for rule in _RULES),
]


def _weights(site: str, number: int) -> ModelState:
    rng = np.random.default_rng([number, *site.encode()])
    scale = 10.0 ** rng.integers(-9, 9, 257)
    return ModelState(
        {
            "w": rng.normal(size=257) * scale,
            "m.lora_A.weight": rng.normal(size=(3, 16)),
            "m.lora_B.weight": rng.normal(size=(8, 3)),
        }
    )


_FIRST = _weights("first", 0)


def _said(site: str, number: int) -> Contribution:
    rng = np.random.default_rng([7, number, *site.encode()])
    return Contribution(
        site=site,
        num_examples=int(rng.integers(1, 1000)),
        num_steps=int(rng.integers(1, 50)),
        global_metrics={"loss": float(rng.uniform(0, 5))},
    )


@contextmanager
def _begun(way: _Way) -> Iterator[tuple[Folding, Publication]]:
    """Yield what folds updates, and the model that the first round starts from."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        spool.make()
        path = spool.update("a", encoded=False)
        stream = write_file(path, file_bytes(_FIRST.layout), pack(_FIRST))
        with _folding(way, spool) as folding:
            first: list[Publication | str] = []
            folding.first(path, stream, first.append)
            (model,) = first
            assert isinstance(model, Publication)
            yield folding, model


@contextmanager
def _folding(way: _Way, spool: Spool) -> Iterator[Folding]:
    strategy, rule = way
    with closing(Worker(lambda _: None, num_threads=1)) as worker:
        aggregator = Aggregator(
            _PLAN,
            _FIRST.layout,
            strategy=strategy,
            rule=rule,
            spool=spool,
            each=worker.each,
        )
        yield Folding(_PLAN, aggregator, spool=spool, worker=worker)


def _hand_in(folding: Folding, current: Round, site: str) -> None:
    said = _said(site, current.number)
    assert current.receive(site, current.number, said.num_examples)
    folding.keep(_weights(site, current.number), said)
    folding.advance(current)


def _finished(folding: Folding, model: Publication) -> Publication:
    outcomes: list[Publication | str] = []
    folding.finish(Round(0, (), quorum=1), model, outcomes.append)
    (outcome,) = outcomes
    assert isinstance(outcome, Publication)
    return outcome


def _bits(model: Publication) -> bytes:
    memory = model.memory.path.read_bytes() if model.memory else b""
    return bytes(model.model.contents) + memory


def _played(way: _Way, arrivals: Sequence[tuple[str, ...]]) -> bytes:
    """Play rounds with updates that arrive in these orders; return all that is left."""
    with _begun(way) as (folding, first):
        model = first
        for number, arriving in enumerate(arrivals):
            current = Round(number, _SITES, quorum=len(_SITES))
            folding.begin(model.weights)
            for site in arriving:
                _hand_in(folding, current, site)
            model = _finished(folding, model)
        return _bits(model)


@pytest.mark.parametrize("way", _WAYS, ids=str)
@settings(max_examples=20)
@given(st.lists(st.permutations(_SITES).map(tuple), min_size=1, max_size=3))
def test_the_order_of_arrival_changes_no_bit(
    way: _Way, arrivals: list[tuple[str, ...]]
) -> None:
    in_order = [_SITES for _ in arrivals]

    assert _played(way, arrivals) == _played(way, in_order)


@pytest.mark.parametrize("way", _WAYS, ids=str)
def test_a_site_that_was_given_up_and_comes_back_counts_as_if_it_had_not_been(
    way: _Way,
) -> None:
    with _begun(way) as (folding, model):
        current = Round(0, _SITES, quorum=2)
        folding.begin(model.weights)
        current.lose("b")
        for site in ("a", "c", "d", "e"):
            _hand_in(folding, current, site)
        current.invite("b")
        _hand_in(folding, current, "b")

        found = _bits(_finished(folding, model))

    assert found == _played(way, [_SITES])


def test_the_files_that_another_server_goes_on_from_are_there_until_its_round_is_over(
    tmp_path: Path,
) -> None:
    with _begun((FedAdam(), Mean())) as (folding, first):
        current = Round(0, _SITES, quorum=len(_SITES))
        folding.begin(first.weights)
        for site in _SITES:
            _hand_in(folding, current, site)
        left = _finished(folding, first)
        assert left.memory is not None
        shutil.copytree(left.spool.folder, tmp_path, dirs_exist_ok=True)

        with _folding((FedAdam(), Mean()), Spool(tmp_path)) as another:
            model = another.resume(1, left.model.stream, left.memory.digest)

            assert _bits(model) == _bits(left)
            model.discard_beside()
            model.discard()
            there = {one.stem for one in tmp_path.rglob("*.*")}
            assert there == {first.model.stream.hex()}
