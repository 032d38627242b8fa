"""SCAFFOLD inside the training of a `Trainer`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from adapters.quadratics import OPTIMUM, RATE, STEPS, Quadratic, plan, play
from adapters.scripts.huggingface_site import arguments
from adapters.sites import played
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._loop import innermost
from flare_core import Scaffold


class Model(Quadratic):
    """Minimises what the first site does, whatever the data."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override] # a Trainer's model
        del x
        return {"loss": super().forward()}


def test_scaffold_ends_at_the_optimum_of_all(pair: Any, tmp_path: Path) -> None:
    server, files = pair(plan(Scaffold()))
    settings = {"learning_rate": RATE, "per_device_train_batch_size": 1}
    trainer = Trainer(
        model=Model(0),
        args=arguments(str(tmp_path), **settings),
        train_dataset=[{"x": torch.zeros(1)}] * (2 * STEPS),
        callbacks=[FLCallback(files[0])],
    )

    *_, last = played(server, trainer.train, lambda: play(files[1], 1))

    assert last["weight"][0] == pytest.approx(OPTIMUM, abs=1e-9)
    assert trainer.model.weight.item() == last["weight"][0]
    assert not innermost(trainer.optimizer)._optimizer_step_post_hooks
