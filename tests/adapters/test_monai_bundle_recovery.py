"""A Bundle that says nothing of a federation is killed, started again, and goes on."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from adapters.test_unchanged_bundle import RUN_BUNDLE, silent_bundle
from deployed import Deployment, deployment
from flare_core import Plan
from simulated import COMMAND

ENDS_S = 120  # MONAI is loaded by two processes at once
WATCH = """\
import json, sys
from pathlib import Path
from ignite.engine import Events

class Watch:
    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        rate, number = engine.optimizer.param_groups[0]["lr"], engine.state.iteration
        with open("log.jsonl", "a") as log:
            loss = float(engine.state.output[0]["loss"])
            print(json.dumps([number, engine.state.epoch, loss, rate]), file=log)
        if number == 9 and Path("hold").exists():
            print("holds", flush=True)
            sys.stdin.read()
"""


def bundle() -> dict[str, object]:
    """Return a Bundle with all that draws numbers, and a schedule."""
    found = silent_bundle()
    found["imports"].append("$import watch")
    found["network"] = "$torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout())"
    found["optimizer"]["momentum"] = 0.9
    found["noise"] = {"_target_": "RandGaussianNoised", "keys": ["image"], "prob": 0.5}
    loader = {"_target_": "DataLoader", "batch_size": 4, "shuffle": True}
    data = {"_target_": "Dataset", "data": "@data", "transform": "@noise"}
    found["shuffled"] = {**loader, "dataset": data}
    found["schedule"] = {
        "_target_": "LrScheduleHandler",
        "lr_scheduler": "$torch.optim.lr_scheduler.ExponentialLR(@optimizer, 0.5)",
    }
    found["train"]["trainer"]["train_data_loader"] = "@shuffled"
    found["train"]["handlers"] += ["@schedule", {"_target_": "$watch.Watch"}]
    found["train"]["handlers"].append(
        {
            "_target_": "CheckpointSaver",
            "save_dir": "models",
            "save_dict": {"model": "@network"},
            "save_interval": 1,
            "n_saved": 2,
        }
    )
    return found


def start(deployed: Deployment, run: str, folder: Path) -> subprocess.Popen[str]:
    site = ["--home", str(deployed.path / "a"), "--run", run]
    return subprocess.Popen(
        [COMMAND, "run", *site, RUN_BUNDLE, "--config_file", "train.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def folder_of(deployed: Deployment, run: str, folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(bundle()))
    (folder / "watch.py").write_text(WATCH)
    deployed.create(run, Plan(rounds=3))
    return folder


def ends_well(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=ENDS_S)
    assert process.returncode == 0, said


@pytest.mark.timeout(400)
def test_a_bundle_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    with deployment() as deployed:
        deployed.member("a")
        quiet = folder_of(deployed, "quiet", tmp_path / "quiet")
        killed = folder_of(deployed, "killed", tmp_path / "killed")
        (killed / "hold").touch()

        with (
            start(deployed, "quiet", quiet) as other,
            start(deployed, "killed", killed) as first,
        ):
            assert first.stdout is not None
            said = iter(first.stdout.readline, "")
            assert any(line == "holds\n" for line in said), first.communicate()
            first.kill()
            ends_well(other)
        (killed / "hold").unlink()
        with start(deployed, "killed", killed) as second:
            ends_well(second)

        runs = [deployed.ended(run) for run in ("quiet", "killed")]
    expected, found = [
        [json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()]
        for one in (quiet, killed)
    ]
    assert [run.state for run in runs] == ["finished", "finished"]
    assert runs[0].blake3 == runs[1].blake3
    assert [number for number, *_ in found] == [*range(1, 10), 6, *range(7, 19)]
    assert found[9:] == expected[5:]
    assert found[:9] == expected[:9]
    names = [
        sorted(one.name for one in each.glob("models/*")) for each in (quiet, killed)
    ]
    assert names[0] == names[1]
