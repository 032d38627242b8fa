"""Fits of sites that are not in the cohort of each round."""

from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import pytest
import torch

from adapters.lightning_runs import Net, data, fit, whole
from adapters.sites import models, records, together
from flare_adapters.lightning import FLCallback
from flare_core import ModelState, Plan, Selection

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
