"""Trainings at sites that are not in the cohort of each round."""

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from adapters.huggingface_runs import OtherSite, records_of
from adapters.scripts.huggingface_site import Case, play
from adapters.sites import models
from flare_core import Plan, Schedule, Selection
from support import RunServer, SiteFile


@pytest.fixture(scope="module")
def other_site() -> Iterator[OtherSite]:
    site = OtherSite()
    yield site
    site.close()


@pytest.mark.parametrize("unit", ["every_n_epochs", "every_n_steps"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("rounds", [3, 1])
def test_a_training_goes_on_when_its_site_is_chosen_and_ends_with_the_final_model(
    rounds: int,
    accumulate: int,
    unit: str,
    run_server: RunServer,
    site_file: SiteFile,
    other_site: OtherSite,
) -> None:
    server = run_server(
        Plan(
            rounds=rounds,
            schedule=Schedule(**{unit: 1}),
            selection=Selection(sites=2, choose="round_robin", k=1),
        )
    )
    here, there = (
        Case(
            kind="llama",
            site=name,
            file=str(file := site_file(name, server.endpoint)),
            folder=str(file.parent),
            seed=seed,
            settings={
                "per_device_train_batch_size": 3,
                "gradient_accumulation_steps": accumulate,
            },
        )
        for seed, name in enumerate("ab")
    )

    other_site.start(there)
    play(here)

    assert other_site.error() == ""
    cohorts = [list(one.cohort) for one in records_of(server)]
    assert cohorts == [["a"], ["b"], ["a"]][:rounds]
    final = models(server)[-1]
    for case in (here, there):
        left = load_file(case.weights)
        assert left.keys() <= final.keys()
        for name, tensor in left.items():
            assert torch.equal(tensor, torch.from_numpy(final[name].copy()))
