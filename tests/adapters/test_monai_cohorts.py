"""Runs of Ignite engines at sites that wait for their turn, or whose run ends early."""

from typing import Any

import pytest
from ignite.engine import Engine, Events

from adapters.ignite_runs import evaluator, furthest, net, play, rows, whole
from adapters.sites import models, records, together
from flare_core import Plan, Schedule, Selection, Stop

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


@pytest.mark.parametrize(
    "schedule", [Schedule(every_n_epochs=1), Schedule(every_n_steps=1)], ids=str
)
def test_a_run_ends_with_a_federation_that_ends_early(
    schedule: Schedule, pair: Any
) -> None:
    stop = Stop(metric="error", target=1e6)  # the first one that is validated
    selection = Selection(sites=2)
    server, files = pair(
        Plan(rounds=9, schedule=schedule, selection=selection, stop=stop)
    )
    nets, engines = [net(0), net(1)], dict[int, Engine]()

    def run(i: int) -> None:
        validates, data = evaluator(nets[i]), whole(rows(i))

        def prepare(trainer: Engine) -> None:
            @trainer.on(Events.STARTED | Events.EPOCH_COMPLETED)
            def validate(_: Engine) -> None:
                validates.run(data)

        options = {"evaluator": validates, "prepare": prepare}
        engines[i] = play(nets[i], data, files[i], **options)

    raised = together(lambda: run(0), lambda: run(1))

    assert raised == [None, None]
    result = server.result()
    assert (result.error, result.stopped != "") == ("", True)
    assert result.rounds == len(records(server)) < 3
    assert [engines[i].state.epoch for i in range(2)] == [result.rounds] * 2
    assert all(furthest(models(server)[-1], one) == 0 for one in nets)
    assert result.sites.keys() == {"a", "b"}
