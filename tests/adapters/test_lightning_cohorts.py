"""Fits of sites that are not in the cohort of each round, or whose run ends early."""

from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import pytest
import torch

from adapters.lightning_runs import Net, data, fit, whole
from adapters.sites import models, records, together
from flare_adapters.lightning import FLCallback
from flare_core import ModelState, Plan, Selection, Stop

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]
_TURNS = Selection(sites=2, choose="round_robin", k=1)


def _is(net: L.LightningModule, model: ModelState) -> bool:
    return all(
        torch.equal(tensor, torch.from_numpy(model[name].copy()))
        for name, tensor in net.state_dict().items()
    )


@pytest.mark.parametrize(("rounds", "epochs"), [(3, [2, 1]), (1, [1, 0])])
def test_a_fit_trains_when_its_site_is_chosen_and_ends_with_the_final_model(
    rounds: int, epochs: list[int], pair: Any
) -> None:
    server, files = pair(Plan(rounds=rounds, selection=_TURNS))
    nets, trainers = [Net(seed=0), Net(seed=1)], dict[int, L.Trainer]()

    def play(i: int) -> None:
        callback = FLCallback(files[i])
        trainers[i] = fit(nets[i], whole(data(i)), callback, min_epochs=2)

    raised = together(lambda: play(0), lambda: play(1))

    assert raised == [None, None]
    assert [trainers[i].current_epoch for i in range(2)] == epochs
    assert [len(net.rates) for net in nets] == epochs
    assert all(_is(net, models(server)[-1]) for net in nets)
    assert [list(one.cohort) for one in records(server)] == [["a"], ["b"], ["a"]][
        :rounds
    ]


def test_a_fit_ends_with_a_run_that_ends_early(pair: Any) -> None:
    stop = Stop(metric="val_loss", target=1e6)  # the first one that is validated
    plan = Plan(rounds=9, selection=Selection(sites=2), stop=stop)
    server, files = pair(plan)
    nets, trainers = [Net(seed=0), Net(seed=1)], dict[int, L.Trainer]()

    def play(i: int) -> None:
        trainers[i] = fit(nets[i], whole(data(i)), FLCallback(files[i]), min_epochs=9)

    raised = together(lambda: play(0), lambda: play(1))

    assert raised == [None, None]
    result = server.result()
    assert (result.rounds, result.error) == (2, "")
    assert result.stopped.endswith("and the target 1e+06")
    assert result.best is not None
    assert result.sites.keys() == {"a", "b"}
    assert [trainers[i].current_epoch for i in range(2)] == [2, 2]
    assert all(_is(net, models(server)[-1]) for net in nets)
