"""Where a round of a Lightning fit ends, and what it counts."""

import math
from collections.abc import Iterator
from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adapters.lightning_runs import Linear, Net, data, fit, whole
from adapters.scripts.lightning_site import trainer
from adapters.sites import records
from flare_adapters.lightning import FLCallback
from flare_core import (
    ConfigurationError,
    HorizonError,
    Plan,
    Schedule,
)
from support import RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


def test_reset_drops_the_optimizers_state_each_round(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3))
    steps: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            state = trainer.optimizers[0].state
            steps.append(max((int(one["step"]) for one in state.values()), default=0))

    callback = FLCallback(site_file("a", server.endpoint), optimizer_state="reset")
    fit(Net(), DataLoader(data(), batch_size=11), callback, Watch())

    assert steps == [1, 0, 1, 0, 1, 0]


class Endless(IterableDataset[Any]):
    """Rows without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(data())


@pytest.mark.parametrize(
    ("loader", "settings", "expected"),
    [
        (DataLoader(Endless(), batch_size=4), {}, 22),
        (DataLoader(Endless(), batch_size=4), {"limit_train_batches": 2}, 8),
        (DataLoader(data(), batch_size=4), {"limit_train_batches": 0.5}, 12),
        (DataLoader(data(), batch_size=4), {"min_epochs": 10}, 22),
    ],
)
def test_examples_are_those_really_seen(
    loader: Any,
    settings: dict[str, Any],
    expected: int,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=2))
    callback = FLCallback(site_file("a", server.endpoint))

    trainer(max_epochs=1, callbacks=[callback], **settings).fit(Linear(), loader)

    assert [one.num_examples for one in records(server)] == [expected, expected]
    steps = math.ceil(expected / 4)
    assert [one.sites["a"].num_steps for one in records(server)] == [steps, steps]


def test_an_epoch_that_the_module_cuts_short_ends_its_round(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))

    class Short(Linear):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    callback = FLCallback(site_file("a", server.endpoint))
    fit(Short(), DataLoader(data(), batch_size=4), callback)

    assert [one.num_examples for one in records(server)] == [8, 8]


def test_several_optimizers_of_a_manual_loop_count_each_step(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))

    class Two(Linear):
        automatic_optimization = False

        def training_step(self, batch: Any) -> Tensor:
            for optimizer in self.optimizers():
                loss = super().training_step(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    callback = FLCallback(site_file("a", server.endpoint), every_n_steps=4)
    fit(Two(), DataLoader(data(), batch_size=4), callback)

    assert [one.num_examples for one in records(server)] == [8, 8]


def test_the_plan_puts_its_schedule_first(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, schedule=Schedule(every_n_steps=3)))
    callback = FLCallback(site_file("a", server.endpoint), every_n_epochs=5)

    run = fit(Linear(), DataLoader(data(), batch_size=4), callback)

    assert run.global_step == 6


def test_a_fit_shorter_than_the_run_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=20))

    with pytest.raises(HorizonError, match=r"plays 1 rounds.*the run has 20"):
        fit(
            Linear(),
            whole(data()),
            FLCallback(site_file("a", server.endpoint)),
            fast_dev_run=True,
        )


def test_switched_off_the_callback_does_nothing(monkeypatch: Any) -> None:
    monkeypatch.setenv("FLARE_SITE", "off")

    run = fit(Linear(), whole(data()), FLCallback(), max_epochs=3)

    assert run.current_epoch == 3


def test_without_a_federation_the_callback_says_how_to_get_one() -> None:
    with pytest.raises(ConfigurationError, match=r"FLARE_SITE is not set.*simulate"):
        FLCallback()


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_epochs": 1, "every_n_steps": 1},
        {"every_n_steps": 0},
        {"optimizer_state": "kept"},
    ],
)
def test_a_wrong_argument_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"every_n|>= 1|kept"):
        FLCallback("off", **wrong)
