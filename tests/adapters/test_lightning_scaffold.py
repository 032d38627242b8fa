"""SCAFFOLD inside a Lightning fit."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapters.quadratics import OPTIMUM, STEPS, Quadratic, plan, play, sgd
from adapters.scripts.lightning_site import trainer
from adapters.sites import played
from flare_adapters.lightning import FLCallback
from flare_core import Plan, Scaffold
from support import RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


class Site(LightningModule):
    """Minimises what the first site does."""

    def __init__(self) -> None:
        super().__init__()
        self.quadratic = Quadratic(0)

    def training_step(self, _: Any) -> Tensor:
        return self.quadratic()

    def configure_optimizers(self) -> Any:
        return sgd(self)


def test_scaffold_ends_at_the_optimum_of_all(pair: Any) -> None:
    server, files = pair(plan(Scaffold()))
    net, callback = Site(), FLCallback(files[0])
    run = trainer(max_epochs=1, callbacks=[callback])

    *_, last = played(
        server,
        lambda: run.fit(net, DataLoader(torch.zeros(2 * STEPS), batch_size=1)),
        lambda: play(files[1], 1, prefix="quadratic"),
    )

    assert last["quadratic.weight"][0] == pytest.approx(OPTIMUM, abs=1e-9)
    assert net.quadratic.weight.item() == last["quadratic.weight"][0]
    assert not run.optimizers[0]._optimizer_step_post_hooks


class Slope(LightningModule):
    """A loss whose gradient is 3, but infinite for one batch."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self._fused = fused

    def training_step(self, batch: Tensor) -> Tensor:
        return 3 * self.weight.sum() * (float("inf") if batch.item() == 1 else 1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5, fused=self._fused)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_mixed_precision_skips_is_none(
    run_server: RunServer, site_file: SiteFile, *, fused: bool
) -> None:
    server = run_server(Plan(rounds=1, local=Scaffold()))
    net = Slope(fused=fused)
    half = MixedPrecision("16-mixed", "cpu")
    callback = FLCallback(site_file("a", server.endpoint))

    run = trainer(max_epochs=1, callbacks=[callback], plugins=[half])

    *_, last = played(
        server, lambda: run.fit(net, DataLoader(torch.arange(3.0), batch_size=1))
    )

    assert net.weight.item() == -2 * 0.5 * 3
    assert last["scaffold:weight"].tolist() == [3.0]
