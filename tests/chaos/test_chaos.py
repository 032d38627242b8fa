"""A few of the federations that ``python -m tests.chaos`` plays."""

import random

import msgspec
import pytest

import flare_core as flare
from chaos.faults import draw
from chaos.federation import ROUNDS, SITES, Outcome, play
from chaos.report import LOOPS

_RUNS = 20
_LOOP = LOOPS["numpy"]
_PLAN = flare.Plan(rounds=ROUNDS, selection=flare.Selection(sites=len(SITES)))
_OF_SOME = msgspec.structs.replace(
    _PLAN,
    selection=flare.Selection(sites=len(SITES), choose="random", k=2, seed=3),
)


@pytest.fixture(scope="module")
def alone() -> Outcome:
    """The same federation, if nothing happens."""
    outcome = play(_LOOP.command, _PLAN, [], alone_s=0)
    assert outcome.problems == []
    return outcome


@pytest.fixture(scope="module")
def some_alone() -> Outcome:
    """One where not all sites are in each round, if nothing happens."""
    outcome = play(_LOOP.command, _OF_SOME, [], alone_s=0)
    assert outcome.problems == []
    return outcome


@pytest.mark.parametrize("seed", range(_RUNS))
def test_a_federation_ends_with_the_same_model_whatever_happens(
    seed: int, alone: Outcome
) -> None:
    fault = draw(random.Random(seed), SITES, _LOOP.num_bytes)  # noqa: S311 - had again

    outcome = play(_LOOP.command, _PLAN, [fault], alone_s=alone.seconds)

    assert outcome.problems == [], outcome.said
    assert outcome.blake3 == alone.blake3, fault


@pytest.mark.parametrize("seed", range(_RUNS, _RUNS + 5))
def test_cohorts_are_the_same_whatever_happens(seed: int, some_alone: Outcome) -> None:
    fault = draw(random.Random(seed), SITES, _LOOP.num_bytes)  # noqa: S311 - as above

    outcome = play(_LOOP.command, _OF_SOME, [fault], alone_s=some_alone.seconds)

    assert outcome.problems == [], outcome.said
    assert outcome.blake3 == some_alone.blake3, fault
