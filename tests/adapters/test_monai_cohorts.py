"""Runs of Ignite engines at sites that are not in the cohort of each round."""

from typing import Any

import pytest
from ignite.engine import Engine

from adapters.ignite_runs import evaluator, furthest, net, play, rows, whole
from adapters.sites import models, records, together
from flare_core import Plan, Selection

_TURNS = Selection(sites=2, choose="round_robin", k=1)


@pytest.mark.parametrize(("rounds", "epochs"), [(3, [2, 1]), (1, [1, 0])])
def test_a_run_trains_when_its_site_is_chosen_and_ends_with_the_final_model(
    rounds: int, epochs: list[int], pair: Any
) -> None:
    server, files = pair(Plan(rounds=rounds, selection=_TURNS))
    nets, engines = [net(0), net(1)], dict[int, Engine]()

    def run(i: int) -> None:
        validates = evaluator(nets[i])
        validates.run(whole(rows(i)))
        engines[i] = play(nets[i], whole(rows(i)), files[i], evaluator=validates)

    raised = together(lambda: run(0), lambda: run(1))

    assert raised == [None, None]
    assert [engines[i].state.epoch for i in range(2)] == epochs
    assert [engines[i].state.iteration for i in range(2)] == epochs
    assert all(furthest(models(server)[-1], one) == 0 for one in nets)
    cohorts = [list(one.cohort) for one in records(server)]
    assert cohorts == [["a"], ["b"], ["a"]][:rounds]
    if 0 in epochs:
        assert "error" in server.result().sites["b"]
