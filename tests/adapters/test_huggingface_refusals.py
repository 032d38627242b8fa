"""What cannot take part is refused, in words, and the others are told."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedPlugin
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from adapters.huggingface_runs import run, stand_still
from adapters.scripts.huggingface_site import arguments, llama, lora, rows
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._refuse import refuse_model
from flare_core import (
    BaseModelError,
    FedProx,
    LayoutError,
    Lora,
    Plan,
    PreflightPassed,
    RunAbortedError,
    Schedule,
    ScheduleError,
    Selection,
    UnsupportedError,
    UpdateError,
)
from support import RunServer, SiteFile


class Diverged(TrainerCallback):
    """Breaks a weight after the first step."""

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        with torch.no_grad():
            model.lm_head.weight[3, 2] = torch.nan


class ScheduleFree(torch.optim.SGD):
    """Has other weights in training, like those of `schedulefree`."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


@pytest.mark.parametrize(
    ("refused", "kind", "other", "every"),
    [
        (
            (
                LayoutError,
                r"'lm_head.weight': expected F32 \(50, 24\).*got F32 \(50, 16\)",
            ),
            "llama",
            lambda: llama(seed=0, size=24),
            {},
        ),
        (
            (LayoutError, r"lora_A.weight': expected F32 \(2, 16\).*got F32 \(4, 16\)"),
            "lora",
            lambda: lora(seed=0, rank=2),
            {},
        ),
        (
            (LayoutError, r"expected BF16 \(50, 16\).*got F32"),
            "llama",
            lambda: llama(seed=0).bfloat16(),
            {},
        ),
        (
            (BaseModelError, "frozen base model: expected fingerprint"),
            "lora",
            lambda: lora(seed=0, base_seed=43),
            {},
        ),
        (
            (ScheduleError, "expected every_n_steps = 3.*got every_n_epochs = 1"),
            "llama",
            lambda: llama(seed=0),
            {"every_n_steps": 3},
        ),
    ],
    ids=["shape", "rank", "type", "base", "schedule"],
)
def test_a_site_that_differs_is_refused(
    refused: tuple[type[Exception], str],
    kind: str,
    other: Any,
    every: Any,
    two_sites: Any,
) -> None:
    server, first, second = two_sites
    error, words = refused

    with ThreadPoolExecutor(1) as pool:
        reference = pool.submit(stand_still, first, other(), **every)
        with pytest.raises(error, match=words):
            run(kind, second.parent, FLCallback(second))
        with pytest.raises(RunAbortedError, match="site 'b'"):
            reference.result()

    assert "site 'b'" in server.result().error


@pytest.fixture
def two_sites(run_server: RunServer, site_file: SiteFile) -> Any:
    """A server that waits for two sites, and their files."""
    server = run_server(Plan(rounds=1, selection=Selection(sites=2)))
    return server, site_file("a", server.endpoint), site_file("b", server.endpoint)


def test_an_update_that_is_not_finite_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)

    with pytest.raises(UpdateError, match=r"'lm_head.weight'.*NaN or infinity"):
        run("llama", file.parent, Diverged(), FLCallback(file))

    assert server.result().rounds == 0


@pytest.mark.parametrize(
    ("mu", "words"),
    [(0.1, r"FedProx\(mu=0.1\) corrects gradients"), (0.0, "master weights")],
)
def test_deepspeed_is_refused(
    mu: float, words: str, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, local=FedProx(mu=mu)))
    file = site_file("a", server.endpoint)
    args = arguments(str(file.parent))
    args.deepspeed_plugin = DeepSpeedPlugin(zero_stage=2)

    with pytest.raises(UnsupportedError, match=words):
        begin(FLCallback(file), args)

    assert "UnsupportedError" in server.result().error


def test_ranks_that_share_a_batch_are_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)
    args = arguments(str(file.parent))
    args.parallelism_config = ParallelismConfig(tp_size=2)

    with pytest.raises(UnsupportedError, match="data parallelism only"):
        begin(FLCallback(file), args)

    assert "UnsupportedError" in server.result().error


def test_fedprox_with_steps_inside_backward_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, local=FedProx(mu=0.1)))
    file = site_file("a", server.endpoint)
    args = arguments(str(file.parent), optim="galore_adamw_layerwise")

    with pytest.raises(UnsupportedError, match="galore_adamw_layerwise"):
        begin(FLCallback(file), args)

    assert "UnsupportedError" in server.result().error


class OfTwoRanks(TrainingArguments):
    """What one of two ranks is told."""

    world_size = property(lambda _: 2)


@pytest.mark.parametrize("aggregate", ["freeze_a", "alternate", "fedsvd"])
def test_factors_that_take_turns_are_refused_where_there_are_several_ranks(
    aggregate: Any, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, lora=Lora(aggregate=aggregate)))
    file = site_file("a", server.endpoint)
    args = arguments(str(file.parent))
    args.__class__ = OfTwoRanks

    with pytest.raises(UnsupportedError, match="this site has 2 ranks"):
        begin(FLCallback(file), args)

    assert "UnsupportedError" in server.result().error


def begin(callback: FLCallback, args: TrainingArguments) -> None:
    """Do what the end of the Trainer's constructor does."""
    callback.on_init_end(args, TrainerState(), TrainerControl())


def test_an_optimizer_with_other_weights_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)
    model = llama(seed=0)
    trainer = Trainer(
        model=model,
        args=arguments(str(file.parent)),
        train_dataset=rows("llama", "b"),
        optimizers=(ScheduleFree(model.parameters(), lr=0.1), None),
        callbacks=[FLCallback(file)],
    )

    with pytest.raises(UnsupportedError, match="ScheduleFree is schedule-free"):
        trainer.train()

    assert "UnsupportedError" in server.result().error


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_first_fsdp_is_refused() -> None:
    sharded = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))

    with pytest.raises(UnsupportedError, match="FSDP version 1"):
        refuse_model(sharded)


def test_the_plan_may_cut_the_rounds(
    run_server: RunServer, site_file: SiteFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server(Plan(rounds=2, schedule=Schedule(every_n_steps=3)))
    file = site_file("a", server.endpoint)

    trainer = run("llama", file.parent, FLCallback(file, every_n_epochs=1))

    assert trainer.state.global_step == 6
    assert "the plan holds" in caplog.text


def test_a_preflight_ends_the_script_before_it_trains(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2), preflight=True)
    file = site_file("a", server.endpoint)

    with pytest.raises(PreflightPassed):
        run("llama", file.parent, FLCallback(file))

    assert server.result().error == ""
    assert server.result().rounds == 0
