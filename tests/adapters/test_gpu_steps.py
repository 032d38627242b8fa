"""A step goes on while the GPU computes: nothing of ours in it waits for a number."""

from collections.abc import Iterator
from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from adapters.gpu import NEEDS_CUDA
from adapters.huggingface_runs import records_of
from adapters.lightning_on_gpu import ON_GPU, precision
from adapters.lightning_runs import Net, data
from adapters.scripts.huggingface_site import KINDS, arguments, rows
from adapters.scripts.lightning_site import trainer
from flare_adapters.huggingface import FLCallback
from flare_adapters.lightning import FLCallback as LightningCallback
from flare_core import FedProx, Plan, Schedule
from support import RunServer, SiteFile

pytestmark = [
    NEEDS_CUDA,
    pytest.mark.usefixtures("waiting_is_allowed_again"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of a prototype, and advice
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]
TWO_EPOCHS = Schedule(every_n_epochs=2)


@pytest.fixture
def waiting_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


class Waiting(TrainerCallback):
    """Says, where it stands among hooks and callbacks, whether the host may wait."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.times: list[str] = []

    def _set(self, at: str) -> None:
        torch.cuda.set_sync_debug_mode(self.mode)
        self.times.append(at)

    def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
        model.register_forward_hook(lambda *_: self._set("forward"))
        optimizer.optimizer.register_step_pre_hook(lambda *_: self._set("step"))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._set("end")


@pytest.mark.parametrize("kind", ["llama", "lora", "bert"])
@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"label_smoothing_factor": 0.1, "fp16": True},
    ],
)
def test_the_trainer_is_not_kept(
    kind: str, settings: dict[str, Any], run_server: RunServer, site_file: SiteFile
) -> None:
    plan = Plan(rounds=1, schedule=TWO_EPOCHS, local=FedProx(mu=0.1))
    server = run_server(plan)
    file = site_file("a", server.endpoint)
    before, after = Waiting("error"), Waiting("default")
    kept = Trainer(
        model=KINDS[kind](seed=0),
        args=arguments(
            str(file.parent), use_cpu=False, per_device_train_batch_size=2, **settings
        ),
        train_dataset=rows(kind, "b"),
        callbacks=[before, FLCallback(file), after],
    )

    kept.train()

    (record,) = records_of(server)
    assert record.num_examples >= 20
    assert before.times == after.times
    assert set(before.times) == {"forward", "step", "end"}


class LightningWaiting(Callback):
    """The same, as a callback of Lightning's."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def on_before_optimizer_step(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode(self.mode)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # with its last batch an epoch ends, and maybe the round
        torch.cuda.set_sync_debug_mode(
            "default" if trainer.is_last_batch else self.mode
        )


@pytest.mark.parametrize("name", ["32-true", "16-mixed"])
def test_lightning_is_not_kept(
    name: str, run_server: RunServer, site_file: SiteFile
) -> None:
    class Fused(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01, fused=True)

    server = run_server(Plan(rounds=2, schedule=TWO_EPOCHS))
    callback = LightningCallback(site_file("a", server.endpoint))
    around = [LightningWaiting("error"), callback, LightningWaiting("default")]

    run = trainer(max_epochs=1, callbacks=around, **ON_GPU, **precision(name))
    run.fit(Fused(), DataLoader(data(), batch_size=8))

    assert server.result().rounds == 2
