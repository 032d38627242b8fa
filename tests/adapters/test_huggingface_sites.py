"""Several sites, each a process, train as if all data were in one place."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.huggingface_runs import OtherSite, records_of
from adapters.scripts import huggingface_site as script
from adapters.scripts.huggingface_site import KINDS, LR, Case, play, rows
from flare_core import Lora, Plan, Schedule, Selection
from support import RunServer, SiteFile

ROUNDS = 3
TWO_SITES = Plan(
    rounds=ROUNDS,
    schedule=Schedule(every_n_steps=1),
    selection=Selection(sites=2),
    lora=Lora(aggregate="fedavg"),  # a step of the factors, not of their product
)
LAUNCHERS = {
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2"),
    ],
    "accelerate launch": [
        # several ranks on CPUs need MPI there; these find none of the GPUs
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}


@pytest.fixture(scope="module")
def other_site() -> Iterator[OtherSite]:
    site = OtherSite()
    yield site
    site.close()


def centralised(kind: str, *, by_rows: bool = False) -> dict[str, Tensor]:
    """Train on the rows of both sites, one full-batch step of SGD a round.

    With `by_rows`, each site's gradient weighs as much as it has rows.
    """
    trained = KINDS[kind](seed=0)
    weights = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=LR)
    parts = [rows(kind, "a"), rows(kind, "b")]
    batches = parts if by_rows else [parts[0] + parts[1]]
    total = sum(len(batch) for batch in batches)
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        for batch in batches:
            stacked = {name: torch.stack([r[name] for r in batch]) for name in batch[0]}
            (trained(**stacked).loss * len(batch) / total).backward()
        optimizer.step()
    return {name: one.detach() for name, one in trained.named_parameters()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def case(kind: str, site: str, file: Path, **settings: Any) -> Case:
    return Case(
        kind=kind,
        site=site,
        file=str(file),
        folder=str(file.parent),
        seed="ab".index(site),
        settings=settings,
    )


@pytest.mark.parametrize("kind", ["bert", "llama", "tied", "gpt2", "lora", "lora+head"])
def test_a_full_batch_step_a_round_equals_centralised_training(
    kind: str, run_server: RunServer, site_file: SiteFile, other_site: OtherSite
) -> None:
    server = run_server(TWO_SITES)
    settings = {} if kind == "bert" else {"gradient_accumulation_steps": 2}
    small = {} if kind == "bert" else {"per_device_train_batch_size": 5}
    there = case(kind, "b", site_file("b", server.endpoint), **settings, **small)
    here = case(kind, "a", site_file("a", server.endpoint))

    other_site.start(there)
    play(here)

    assert other_site.error() == ""
    ours, theirs = load_file(here.weights), load_file(there.weights)
    assert distance(ours, theirs) == 0
    assert distance(ours, centralised(kind)) <= 1e-6


def test_weighing_by_rows_would_not(
    run_server: RunServer, site_file: SiteFile, other_site: OtherSite
) -> None:
    server = run_server(TWO_SITES)
    here = case("llama", "a", site_file("a", server.endpoint))

    other_site.start(case("llama", "b", site_file("b", server.endpoint)))
    play(here)

    assert other_site.error() == ""
    assert distance(load_file(here.weights), centralised("llama", by_rows=True)) > 0.01
    for record in records_of(server):
        counts = {site: report.num_examples for site, report in record.sites.items()}
        assert counts == {"a": 6 * 3, "b": 10 * 7}


@pytest.mark.parametrize(
    ("launcher", "kind", "lora"),
    [
        ("torchrun", "lora", TWO_SITES.lora),
        ("torchrun", "lora", Lora(aggregate="product", rank=6, residual="adapter")),
        (
            "torchrun",
            "lora",
            Lora(aggregate="stack", rank=8, fresh=4, residual="fold"),
        ),
        ("accelerate launch", "llama", TWO_SITES.lora),
    ],
    ids=["fedavg", "adapter", "stack, fold", "accelerate"],
)
def test_a_site_of_two_ranks_equals_a_site_of_one(
    launcher: str,
    kind: str,
    lora: Lora,
    *,
    run_server: RunServer,
    site_file: SiteFile,
    other_site: OtherSite,
) -> None:
    plan = msgspec.structs.replace(TWO_SITES, lora=lora)
    server, again = run_server(plan), run_server(plan)
    one_rank = case(kind, "a", site_file("a", again.endpoint))
    other_site.start(case(kind, "b", site_file("b", again.endpoint)))
    play(one_rank)
    assert other_site.error() == ""
    expected = load_file(one_rank.weights)

    two_ranks = case(
        kind,
        "a",
        site_file("a", server.endpoint),
        per_device_train_batch_size=3,
        ddp_backend="gloo",
    )
    described = msgspec.json.encode(two_ranks).decode()
    command = [*LAUNCHERS[launcher], script.__file__, described]
    ranks = subprocess.Popen(command)
    play(case(kind, "b", site_file("b", server.endpoint)))

    assert ranks.wait() == 0
    assert distance(load_file(two_ranks.weights), expected) <= 1e-6
    for record, other in zip(records_of(server), records_of(again), strict=True):
        assert record.sites["a"].num_examples == 6 * 3
        assert record.metrics["loss"] == pytest.approx(other.metrics["loss"])
