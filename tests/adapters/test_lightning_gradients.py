"""Several optimizers, odd batches, thawing layers, fits that are resumed."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapters.scripts.lightning_site import trainer
from flare_adapters.lightning import FLCallback
from flare_core import FedProx, Plan, Schedule, UnsupportedError
from flare_core.application import RoundPlayed
from support import RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]
_MU, _RATE = 0.5, 0.1


class Two(LightningModule):
    """Two weights with an optimizer each, which step one after the other."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1.0]))
        self.second = nn.Parameter(torch.tensor([2.0]))

    def training_step(self, batch: Any) -> Tensor:
        loss = (self.first + self.second).square().sum()
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([one], lr=_RATE) for one in self.parameters()]


def test_fedprox_corrects_each_of_several_optimizers_once(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=_MU)))
    net = Two()

    trainer(max_epochs=1, callbacks=[FLCallback(site_file("a", server.endpoint))]).fit(
        net, DataLoader(torch.zeros(2, 1))
    )

    first, second = 1.0, 2.0
    for _ in range(2):  # batches
        gradient = 2 * (first + second)
        first, second = (
            first - _RATE * (gradient + _MU * (first - 1.0)),
            second - _RATE * (gradient + _MU * (second - 2.0)),
        )
    assert net.first.item() == pytest.approx(first)
    assert net.second.item() == pytest.approx(second)


class One(LightningModule):
    """A weight under an optimizer that unscales gradients by itself."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.fused = fused

    def training_step(self, batch: Any) -> Tensor:
        return self.weight.square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=_RATE, fused=self.fused)


@pytest.mark.parametrize("fused", [True, False])
def test_fedprox_is_as_strong_where_gradients_are_still_scaled(
    run_server: RunServer, site_file: SiteFile, *, fused: bool
) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=_MU)))
    net = One(fused=fused)
    half = MixedPrecision("16-mixed", "cpu")
    callback = FLCallback(site_file("a", server.endpoint))

    trainer(max_epochs=1, callbacks=[callback], plugins=[half]).fit(
        net, DataLoader(torch.zeros(2, 1))
    )

    weight = 1.0
    for _ in range(2):  # batches
        weight -= _RATE * (2 * weight + _MU * (weight - 1.0))
    assert net.weight.item() == pytest.approx(weight)


class Words(LightningModule):
    """Learns from lists of words, whose number nobody can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(1, 1).requires_grad_(requires_grad=False)
        self.head = nn.Linear(1, 1)

    def training_step(self, batch: Any) -> Tensor:
        return self.head(self.body(torch.ones(1, 1))).square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=_RATE)


def test_batches_that_cannot_be_counted_count_as_one_each(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    words = DataLoader(["one", "two", "three"], batch_size=None)

    with pytest.warns(UserWarning, match="Cannot count the examples of a str"):
        trainer(
            max_epochs=1, callbacks=[FLCallback(site_file("a", server.endpoint))]
        ).fit(Words(), words)

    (played,) = server.told(RoundPlayed)
    assert played.record.num_examples == 3


def test_what_thaws_during_the_run_is_refused_by_name(
    run_server: RunServer, site_file: SiteFile
) -> None:
    class Thaw(Callback):
        def on_train_epoch_start(self, run: LightningTrainer, net: Any) -> None:
            if run.current_epoch == 1:
                net.body.requires_grad_(requires_grad=True)

    server = run_server(Plan(rounds=2))
    callbacks = [FLCallback(site_file("a", server.endpoint)), Thaw()]

    with pytest.raises(UnsupportedError, match=r"'body.bias' was frozen.*\"all\""):
        trainer(max_epochs=1, callbacks=callbacks).fit(
            Words(), DataLoader(torch.zeros(2, 1))
        )


@pytest.mark.parametrize(
    "schedule", [Schedule(every_n_epochs=1), Schedule(every_n_steps=2)]
)
def test_a_fit_resumed_from_a_checkpoint_plays_all_rounds(
    schedule: Schedule, run_server: RunServer, site_file: SiteFile, tmp_path: Any
) -> None:
    loader = DataLoader(torch.zeros(2, 1))
    saved = ModelCheckpoint(tmp_path, save_last=True)
    settings = {"enable_checkpointing": True, "callbacks": [saved]}
    trainer(max_epochs=3, **settings).fit(Words(), loader)
    server = run_server(Plan(rounds=3, schedule=schedule))
    callback = FLCallback(site_file("a", server.endpoint))
    run = trainer(max_epochs=3, callbacks=[callback])

    run.fit(Words(), loader, ckpt_path=saved.last_model_path, weights_only=False)

    assert server.result().rounds == 3
    assert (run.current_epoch, run.global_step) == (6, 12)
