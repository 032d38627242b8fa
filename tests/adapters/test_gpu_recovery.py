"""A site that trains on a GPU, is killed and started again, ends as if undisturbed."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from adapters.gpu import NEEDS_CUDA
from adapters.scripts import gpu_site as script
from deployed import Deployment, deployment
from flare_adapters._torch import LocalSession, Wire, options
from flare_adapters.huggingface._peft import names_on_wire
from flare_core import FedDyn, FedProx, Local, Plan, Scaffold, Schedule, Selection
from flare_core.management._unchanged import adapted

ROUNDS = 4
ENDS_S = 120
PLAN = Plan(
    rounds=ROUNDS, schedule=Schedule(every_n_epochs=1), selection=Selection(sites=2)
)
pytestmark = [NEEDS_CUDA, pytest.mark.timeout(400)]  # processes import a framework


def beside(file: Path, model: nn.Module, names: dict[str, str] | None) -> None:
    """Play another site, on the CPU, whose model wanders."""
    session = LocalSession(options(file, 1, None, "auto", "keep"))
    session.join(model, playable=math.inf, horizon="", wire=Wire(names=names or {}))
    while not session.final:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 if parameter.requires_grad else 0)
        session.saw(50)
        session.exchange()
    session.leave("")


def starts(kind: str, half: str, file: Path, folder: Path) -> subprocess.Popen[str]:
    """Start the script; the command is always the same."""
    environment = adapted(os.environ | {"FLARE_SITE": str(file)})
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    with (folder / "said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, script.__file__, kind, half, folder],
            env={**environment, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


def ends(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Return what a script has left."""
    process.communicate(timeout=ENDS_S)
    assert process.returncode == 0, (folder / "said").read_text()
    found: dict[str, Any] = json.loads((folder / "end.json").read_text())
    return found


def dies(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill a script where it holds."""
    assert process.stdout is not None
    assert "holds\n" in iter(process.stdout.readline, ""), (folder / "said").read_text()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=ENDS_S)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as found:
        yield found


@pytest.fixture
def deployed(pool: ThreadPoolExecutor) -> Iterator[Deployment]:
    """A server that is stopped before the other site is waited for."""
    del pool
    with deployment() as found:
        found.member("a")
        found.member("b")
        yield found


@pytest.mark.parametrize(
    ("kind", "half"),
    [
        ("lightning", "float32"),
        ("lightning", "bfloat16"),
        ("lightning", "float16"),
        ("gpt2", "float32"),
        ("gpt2", "float16"),
        ("lora", "bfloat16"),
        ("ignite", "float32"),
        ("ignite", "float16"),
    ],
)
def test_a_site_that_is_killed_goes_on_with_the_numbers_of_the_gpu(
    kind: str, half: str, deployed: Deployment, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    _is_torn_and_comes_to_the_same(
        kind, half, PLAN, deployed=deployed, pool=pool, folder=tmp_path
    )


@pytest.mark.parametrize("local", [Scaffold(), FedDyn(alpha=0.1), FedProx(mu=0.1)])
@pytest.mark.parametrize("kind", ["lightning", "ignite"])
def test_what_corrects_its_gradients_goes_on_with_it(
    kind: str,
    local: Local,
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    plan = msgspec.structs.replace(PLAN, local=local)
    _is_torn_and_comes_to_the_same(
        kind, "float16", plan, deployed=deployed, pool=pool, folder=tmp_path
    )


def _is_torn_and_comes_to_the_same(
    kind: str,
    half: str,
    plan: Plan,
    *,
    deployed: Deployment,
    pool: ThreadPoolExecutor,
    folder: Path,
) -> None:
    def play(run: str, kills: Iterable[int]) -> tuple[str, dict[str, Any]]:
        here = folder / run
        here.mkdir()
        deployed.create(run, plan)
        model = script.model_of(kind)
        names = names_on_wire(model) if kind in {"gpt2", "lora"} else None
        other = pool.submit(beside, deployed.site("b", run), model, names)
        file = deployed.site("a", run)
        for number in kills:
            (here / "hold").write_text(str(number))
            dies(starts(kind, half, file, here), here)
        (here / "hold").unlink(missing_ok=True)
        left = ends(starts(kind, half, file, here), here)
        other.result(ENDS_S)
        return deployed.ended(run).blake3, left

    calm = play("calm", [])
    torn = play("torn", [0, ROUNDS - 1])

    assert torn == calm
    if half == "float16":
        assert calm[1]["scaler"]["scale"] != 2.0**16
