"""A few of the federations that ``python -m tests.chaos`` plays."""

import random

import pytest

import flare_core as flare
from chaos.faults import draw
from chaos.federation import ROUNDS, SITES, Outcome, play
from chaos.report import LOOPS

_RUNS = 20
_LOOP = LOOPS["numpy"]
_PLAN = flare.Plan(rounds=ROUNDS, selection=flare.Selection(sites=len(SITES)))


@pytest.fixture(scope="module")
def alone() -> Outcome:
    """The same federation, if nothing happens."""
    outcome = play(_LOOP.command, _PLAN, [], alone_s=0)
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
