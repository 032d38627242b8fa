"""The Hugging Face Trainer on a GPU: precisions, LoRA, and two sites on one device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from adapters.gpu import GPU, NEEDS_CUDA, on_host, places
from adapters.huggingface_runs import OtherSite, assert_same, left_by, run, untrained
from adapters.scripts.huggingface_site import Case, play
from flare_adapters.huggingface import FLCallback
from flare_core import Plan, Schedule, Selection
from support import RunServer, SiteFile

pytestmark = [
    NEEDS_CUDA,
    pytest.mark.usefixtures("deterministic"),
    pytest.mark.timeout(300),  # a process imports the frameworks
]
FULL = {
    "use_cpu": False,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "epoch",
}


class Watch(TrainerCallback):
    """Notes where the weights are."""

    def __init__(self) -> None:
        self.places: list[set[tuple[str, int]]] = []

    def on_step_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self.places.append(places(model))

    def on_train_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.places.append(places(model))


def scale_of(trainer: Trainer) -> dict[str, Any]:
    scaler = trainer.accelerator.scaler
    return scaler.state_dict() if scaler is not None else {}


@pytest.mark.parametrize("kind", ["gpt2+dropout", "lora+dropout", "bert"])
@pytest.mark.parametrize("half", [{}, {"bf16": True}, {"fp16": True}])
def test_one_site_equals_the_plain_script(
    kind: str,
    half: dict[str, bool],
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(Plan(rounds=3, schedule=Schedule(every_n_epochs=1)))
    callback, watch = FLCallback(site_file("a", server.endpoint)), Watch()
    settings = FULL | half

    plain = run(kind, tmp_path, **settings, num_train_epochs=3)
    random = torch.cuda.get_rng_state()
    found = run(kind, tmp_path, callback, watch, **settings)

    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert_same(scale_of(plain), scale_of(found))
    assert bool(scale_of(found)) == ("fp16" in half)
    assert_same(on_host(left_by(plain)), on_host(left_by(found)))
    assert server.result().rounds == 3
    assert all(place == watch.places[0] for place in watch.places)
    assert {device for device, _ in watch.places[0]} == {GPU}


@pytest.mark.parametrize("kind", ["llama", "lora"])
def test_a_model_all_in_bfloat16_equals_the_plain_script(
    kind: str, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3))
    callback = FLCallback(site_file("a", server.endpoint))

    def train(*callbacks: TrainerCallback, **settings: Any) -> Any:
        trainer = untrained_in_half(kind, tmp_path, *callbacks, **settings)
        trainer.train()
        return on_host(left_by(trainer))

    assert_same(train(num_train_epochs=3), train(callback))
    assert server.result().rounds == 3


def untrained_in_half(
    kind: str, folder: Path, *callbacks: TrainerCallback, **settings: Any
) -> Trainer:
    trainer = untrained(kind, folder, *callbacks, **(FULL | settings))
    trainer.model.to(torch.bfloat16)
    return trainer


@pytest.fixture(scope="module")
def other_site() -> Iterator[OtherSite]:
    site = OtherSite()
    yield site
    site.close()


@pytest.mark.parametrize("kind", ["gpt2", "lora"])
@pytest.mark.parametrize("half", [{}, {"bf16": True}, {"fp16": True}])
def test_two_sites_on_one_gpu_end_with_the_same_model_twice(
    kind: str,
    half: dict[str, bool],
    run_server: RunServer,
    site_file: SiteFile,
    other_site: OtherSite,
) -> None:
    plan = Plan(
        rounds=3, schedule=Schedule(every_n_steps=1), selection=Selection(sites=2)
    )

    def play_two() -> str:
        server = run_server(plan)
        cases = [
            Case(
                kind=kind,
                site=name,
                file=str(file := site_file(name, server.endpoint)),
                folder=str(file.parent),
                seed="ab".index(name),
                settings={"use_cpu": False, "full_determinism": True} | half,
            )
            for name in "ab"
        ]
        other_site.start(cases[1])
        trainer = play(cases[0])
        assert other_site.error() == ""
        ours, theirs = (load_file(one.weights) for one in cases)
        assert_same(ours, theirs)
        assert {device for device, _ in places(trainer.model)} == {GPU}
        return server.result().blake3

    assert play_two() == play_two() != ""
