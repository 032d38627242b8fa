"""Trainings at sites that wait for their turn, or whose run ends early."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.huggingface_runs import OtherSite, records_of
from adapters.scripts.huggingface_site import Case, play
from adapters.sites import models
from flare_core import Plan, Schedule, Selection, Stop
from support import RunningServer, RunServer, SiteFile


@pytest.fixture(scope="module")
def other_site() -> Iterator[OtherSite]:
    site = OtherSite()
    yield site
    site.close()


_TURNS = Selection(sites=2, choose="round_robin", k=1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(rounds=3, schedule=Schedule(every_n_steps=1), selection=_TURNS),
        Plan(rounds=1, schedule=Schedule(every_n_steps=1), selection=_TURNS),
        Plan(rounds=1, schedule=Schedule(every_n_epochs=1), selection=_TURNS),
    ],
    ids=lambda plan: f"{plan.rounds} rounds, {plan.schedule}",
)
def test_a_training_goes_on_when_its_site_is_chosen_and_ends_with_the_final_model(
    plan: Plan,
    accumulate: int,
    run_server: RunServer,
    site_file: SiteFile,
    other_site: OtherSite,
) -> None:
    server = run_server(plan)
    settings = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": accumulate,
    }
    here, there = (
        _case(site_file(name, server.endpoint), name, **settings) for name in "ab"
    )

    other_site.start(there)
    play(here)

    assert other_site.error() == ""
    cohorts = [list(one.cohort) for one in records_of(server)]
    assert cohorts == [["a"], ["b"], ["a"]][: plan.rounds]
    _ended_with_the_final_model(server, here, there)


def test_a_training_ends_with_a_run_that_ends_early(
    run_server: RunServer, site_file: SiteFile, other_site: OtherSite
) -> None:
    stop = Stop(metric="eval_loss", target=1e6)  # the first one that is evaluated
    server = run_server(Plan(rounds=9, selection=Selection(sites=2), stop=stop))
    here, there = (
        _case(site_file(name, server.endpoint), name, eval_strategy="epoch")
        for name in "ab"
    )

    other_site.start(there)
    play(here)

    assert other_site.error() == ""
    assert len(records_of(server)) == 2
    result = server.result()
    assert (result.rounds, result.error) == (2, "")
    assert result.stopped.endswith("and the target 1e+06")
    _ended_with_the_final_model(server, here, there)


def _case(file: Path, name: str, **settings: Any) -> Case:
    return Case(
        kind="llama",
        site=name,
        file=str(file),
        folder=str(file.parent),
        seed="ab".index(name),
        settings=settings,
    )


def _ended_with_the_final_model(server: RunningServer, *cases: Case) -> None:
    final = models(server)[-1]
    for case in cases:
        left = load_file(case.weights)
        assert left.keys() <= final.keys()
        for name, tensor in left.items():
            assert torch.equal(tensor, torch.from_numpy(final[name].copy()))
