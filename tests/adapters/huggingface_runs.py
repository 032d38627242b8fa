"""Trainings by the Hugging Face Trainer, and what they leave."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any, final

import msgspec
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from adapters.scripts import huggingface_site as script
from adapters.scripts.huggingface_site import KINDS, Case, arguments, rows
from flare_adapters._torch import LocalSession, Wire, options
from flare_adapters.huggingface._peft import names_on_wire
from flare_core.application import RoundPlayed, RoundRecord
from support import RunningServer


class Trace(TrainerCallback):
    """Notes the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@final
class OtherSite:
    """A process that plays cases as another site."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, script.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def start(self, case: Case) -> None:
        assert self._process.stdin
        self._process.stdin.write(msgspec.json.encode(case) + b"\n")

    def error(self) -> str:
        """Wait until the case is played and return what it raised."""
        assert self._process.stdout
        answer: str = msgspec.json.decode(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


def run(
    kind: str, folder: Path, *callbacks: TrainerCallback, **settings: Any
) -> Trainer:
    """Train on the rows of site b, evaluate on those of site a."""
    trainer = untrained(kind, folder, *callbacks, **settings)
    trainer.train()
    return trainer


def untrained(
    kind: str, folder: Path, *callbacks: TrainerCallback, **settings: Any
) -> Trainer:
    return Trainer(
        model=KINDS[kind](seed=0),
        args=arguments(str(folder), **settings),
        train_dataset=rows(kind, "b"),
        eval_dataset=rows(kind, "a"),
        callbacks=[*callbacks, Trace()],
    )


def rates_of(trainer: Trainer) -> list[float]:
    """Return the learning rate of each step."""
    found = trainer.pop_callback(Trace)
    assert isinstance(found, Trace)
    return found.rates


def stand_still(file: Path, model: Any, *, every_n_steps: int | None = None) -> None:
    """Play a round as a site that learns nothing, with no Trainer around."""
    session = LocalSession(options(file, None, every_n_steps, "auto", "keep"))
    wire = Wire(names=names_on_wire(model))
    session.join(model, playable=math.inf, horizon="", wire=wire)
    session.saw(1)
    session.exchange()
    session.leave("the test is over")


def records_of(server: RunningServer) -> list[RoundRecord]:
    """Wait for the end of a run and return its rounds."""
    server.result()
    return [event.record for event in server.told(RoundPlayed)]


def left_by(trainer: Trainer) -> dict[str, Any]:
    """Return everything that training has left."""
    clocks = ("_runtime", "_per_second")
    return {
        "weights": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "steps": (trainer.state.global_step, trainer.state.max_steps),
        "epoch": trainer.state.epoch,
        "rates": rates_of(trainer),
        "logs": [
            {name: one for name, one in entry.items() if not name.endswith(clocks)}
            for entry in trainer.state.log_history
        ],
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Compare trees of values and tensors, bit for bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name, value in one.items():
            assert_same(value, other[name], f"{where}/{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), (where, one, other)
        for number, (value, its) in enumerate(zip(one, other, strict=True)):
            assert_same(value, its, f"{where}/{number}")
    else:
        assert one == other, where
