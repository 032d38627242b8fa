"""A site whose script is killed and started again ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, final, get_args

import msgspec
import pytest
import torch
from torch import nn
from transformers import Trainer

from adapters.huggingface_runs import untrained
from adapters.scripts import recovering_huggingface as script
from deployed import Deployment, deployment
from flare_adapters._torch import LocalSession, options
from flare_adapters.huggingface._lora import wire_of
from flare_adapters.huggingface._recovery import saves_rounds
from flare_adapters.huggingface._residual import add_residual
from flare_adapters.huggingface._saved import load_weights, read_loop
from flare_core import ConfigurationError, Lora, Plan, Scaffold, Schedule, Selection
from flare_core._lora import Residual
from flare_core.management._unchanged import adapted
from site_scripts import WAIT_S

PLANS = {
    "epochs": Plan(rounds=4, selection=Selection(sites=2)),
    "steps": Plan(
        rounds=4,
        selection=Selection(sites=2),
        schedule=Schedule(every_n_steps=2),
        optimizer_state="reset",
    ),
}
PLANS["scaffold"] = msgspec.structs.replace(PLANS["steps"], local=Scaffold())
PLANS |= {
    residual: msgspec.structs.replace(
        PLANS["steps"], lora=Lora(aggregate="product", rank=6, residual=residual)
    )
    for residual in get_args(Residual)
}
STACK = Lora(aggregate="stack", rank=8, fresh=2, residual="adapter")
PLANS["stack"] = msgspec.structs.replace(PLANS["steps"], lora=STACK)
Trace: TypeAlias = list[list[Any]]
pytestmark = pytest.mark.timeout(200)  # a process imports the frameworks


@final
class Scripts:
    """A process that forks for each script."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, script.__file__],
            env=adapted(os.environ),  # as below `flare run`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(self, *arguments: object) -> int:
        """Start one, and return the number of its process."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([str(one) for one in arguments]) + "\n")
        return self.answer()

    def answer(self) -> int:
        """Return the next number: the exit code, when it has ended."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it, and what it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@final
class Torn:
    """The site "torn" in a run, beside one whose model wanders in a thread.

    Args:
        deployed: The server.
        scripts: Starts what the site runs.
        pool: Has a thread for the other site.
        kind: Of its plan, in `PLANS`.
        says: What its script says of the federation.
        folder: Where its script writes; it gives its name to the run.
    """

    def __init__(
        self,
        deployed: Deployment,
        scripts: Scripts,
        pool: ThreadPoolExecutor,
        *,
        kind: str,
        says: str,
        folder: Path,
    ) -> None:
        self._deployed, self._scripts = deployed, scripts
        self._folder, self._run = folder, folder.name
        deployed.create(self._run, PLANS[kind])
        site = deployed.site("torn", self._run)
        rounds = kind if kind == "epochs" else "steps"
        self._arguments = [site, folder, rounds, says]
        folder.mkdir()
        os.mkfifo(folder / "gate")
        # not in a thread: they set the seed of all
        model = script.net(rounds)
        add_residual(model, PLANS[kind].lora)
        self._other = pool.submit(
            wander, deployed.site("wanderer", self._run), model, PLANS[kind]
        )

    def dies(self, point: str, signum: signal.Signals = signal.SIGKILL) -> Trace:
        """Start the script, end it at a point; return what it has written down."""
        process = self._scripts.start(*self._arguments, point)
        with (self._folder / "gate").open("w"):  # waits for it
            os.kill(process, signum)
            code = self._scripts.answer()
        assert code != 0, self.said()
        return self._trace()

    def ends(self) -> Trace:
        """Start the script, and return what it has written down at its end."""
        self._scripts.start(*self._arguments)
        assert self._scripts.answer() == 0, self.said()
        self._other.result(WAIT_S)
        return self._trace()

    def said(self) -> str:
        """Return what the last process has said."""
        return (self._folder / "said").read_text()

    def blake3(self) -> str:
        """Return the hash of the final model of the run."""
        info = self._deployed.ended(self._run)
        assert (info.state, info.error) == ("finished", "")
        return info.blake3

    def close(self) -> None:
        """Stop the run, unless it is over, so that the other site ends."""
        if self._deployed.info(self._run).state != "finished":
            self._deployed.end(self._run)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights in the round checkpoint."""
        (file,) = self._deployed.path.glob(f"torn/*{self._run}/round/weights.pt")
        found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
        return found

    def _trace(self) -> Trace:
        file = self._folder / "trace.jsonl"
        lines = file.read_bytes() if file.exists() else b""
        file.unlink(missing_ok=True)
        return msgspec.json.Decoder(list[Any]).decode_lines(lines)


Start: TypeAlias = Callable[[str, str, str], Torn]
"""Starts a run, by its name, the kind of its plan, and what the script says."""


def wander(file: Path, model: nn.Module, plan: Plan) -> None:
    """Play a site that adds a number to what it exchanges."""
    every_n_steps = plan.schedule.every_n_steps
    session = LocalSession(options(file, None, every_n_steps, "auto", "keep"))
    session.join(model, playable=100, horizon="", wire=wire_of(model, plan.lora))
    while not session.final:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 if parameter.requires_grad else 0)
        session.saw(50)
        session.exchange()
    session.leave("")


def assert_taken_up(whole: Trace, part: Trace, first: list[Any]) -> None:
    """What a process has done is what was done undisturbed, from a line on."""
    start = whole.index(first)
    assert part == whole[start : start + len(part)]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Scripts]:
    found = Scripts()
    yield found
    found.close()


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployment]:
    with deployment() as found:
        found.member("torn")
        found.member("wanderer")
        yield found


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as found:
        yield found


@pytest.fixture
def start(
    deployed: Deployment, scripts: Scripts, pool: ThreadPoolExecutor, tmp_path: Path
) -> Iterator[Start]:
    started: list[Torn] = []

    def start(run: str, kind: str, says: str) -> Torn:
        folder = tmp_path / f"{kind}-{run}"
        torn = Torn(deployed, scripts, pool, kind=kind, says=says, folder=folder)
        started.append(torn)
        return torn

    yield start
    for torn in started:
        torn.close()


def test_rounds_of_epochs(start: Start) -> None:
    calm, torn = (start(run, "epochs", "callback") for run in ("calm", "torn"))
    whole = calm.ends()
    first, (round_0, round_1, round_2, _) = (
        whole[0],
        [one for one in whole if one[0] == "epoch"],
    )

    assert_taken_up(whole, torn.dies("step 2"), first)
    assert_taken_up(whole, torn.dies("saved"), first)
    assert_taken_up(whole, torn.dies("loaded 6."), round_0)
    assert_taken_up(whole, torn.dies("step 11", signal.SIGINT), round_1)
    last = torn.ends()

    assert_taken_up(whole, last, round_2)
    assert last[-1] == whole[-1]
    assert torn.blake3() == calm.blake3()
    assert "checkpoint-9' is left aside" in torn.said()


def test_rounds_of_steps_of_a_script_that_says_nothing(start: Start) -> None:
    calm, torn = (start(run, "steps", "nothing") for run in ("calm", "torn"))
    whole = calm.ends()
    steps = {number: [w, number, f] for w, number, f in whole if w == "step"}

    assert_taken_up(whole, torn.dies("saved"), steps[1])
    assert all("lora" in name for name in torn.weights())
    assert_taken_up(whole, torn.dies("step 5"), steps[2])
    assert_taken_up(whole, torn.dies("saved"), steps[4])
    assert_taken_up(whole, torn.dies("saved"), steps[6])
    last = torn.ends()

    assert_taken_up(whole, last, steps[8])
    assert last[-1] == whole[-1]
    assert torn.blake3() == calm.blake3()


@pytest.mark.parametrize("kind", ["scaffold", "stack", *get_args(Residual)])
def test_what_is_kept_beside_the_weights_goes_on(kind: str, start: Start) -> None:
    calm, torn = (start(run, kind, "callback") for run in ("calm", "torn"))
    calm.ends()

    torn.dies("saved")
    torn.dies("step 5")
    torn.dies("saved")
    torn.ends()

    assert torn.blake3() == calm.blake3()


def test_a_trainer_that_has_another_loop_saves_no_round_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert saves_rounds()

    monkeypatch.delattr(Trainer, "_run_epoch")

    assert not saves_rounds()
    assert "has no _run_epoch, so that no round is saved" in caplog.text


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "weights.pt")

    with pytest.raises(ConfigurationError, match=r"'weight' of shape \(2, 3\)"):
        load_weights(nn.Linear(2, 2), tmp_path)


def test_a_rank_that_was_not_there_is_refused(tmp_path: Path) -> None:
    trainer = untrained("bert", tmp_path)

    with pytest.raises(ConfigurationError, match="each of the 1 ranks of this site"):
        read_loop(trainer, tmp_path)
