"""One site under the server trains as the plain script does, bit for bit."""

from pathlib import Path

import pytest

from adapters.huggingface_runs import assert_same, left_by, run
from flare_adapters.huggingface import FLCallback
from flare_core import Plan, Schedule
from support import RunServer, SiteFile

FULL = {
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_steps": 2,
}
"""As people train: AdamW, cosine with warm-up, clipping, accumulation, shuffling."""


@pytest.mark.parametrize("kind", ["gpt2+dropout", "lora+dropout", "bert"])
@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_one_site_equals_the_plain_script(
    kind: str, unit: str, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    plan = {
        "epochs": Plan(rounds=3, schedule=Schedule(every_n_epochs=1)),
        "steps": Plan(rounds=4, schedule=Schedule(every_n_steps=2)),
    }[unit]
    length = {"epochs": {"num_train_epochs": 3}, "steps": {"max_steps": 8}}[unit]
    settings = FULL | {"eval_strategy": unit.replace("epochs", "epoch")}
    server = run_server(plan)
    callback = FLCallback(site_file("a", server.endpoint))

    plain = left_by(run(kind, tmp_path, **(settings | length)))
    federated = left_by(run(kind, tmp_path, callback, **settings))

    assert_same(plain, federated)
    assert server.result().rounds == plan.rounds
