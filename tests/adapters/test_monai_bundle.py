"""A Bundle is federated by one entry in a second config file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from adapters.ignite_runs import furthest, linear, loss_on, sgd
from adapters.sites import models
from flare_core import Plan, Selection
from simulated import COMMAND
from support import RunningServer, RunServer, SiteFile

BUNDLE = {
    "imports": ["$import torch", "$import flare_core"],
    "index": "$flare_core.site().index",
    "rows": "$[24, 40][@index]",
    "images": "$torch.randn(@rows, 4, generator=torch.Generator().manual_seed(@index))",
    "data": "$[{'image': x, 'label': x.sum(0, keepdim=True)} for x in @images]",
    "loader": {
        "_target_": "DataLoader",
        "dataset": {"_target_": "Dataset", "data": "@data"},
        "batch_size": "@rows",
    },
    "network": {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 1},
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "params": "$@network.parameters()",
        "lr": 0.1,
    },
    "validate": {
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "cpu",
            "val_data_loader": "@loader",
            "network": "@network",
            "key_val_metric": {
                "mse": {
                    "_target_": "ignite.metrics.MeanSquaredError",
                    "output_transform": "$lambda o: tuple("
                    "torch.stack([x[k] for x in o]) for k in ('pred', 'label'))",
                }
            },
        }
    },
    "train": {
        "handlers": [
            {
                "_target_": "ValidationHandler",
                "interval": 1,
                "validator": "@validate#evaluator",
            },
            {
                "_target_": "CheckpointSaver",
                "save_dir": "$'models-' + flare_core.site().name",
                "save_dict": {"model": "@network"},
                "save_interval": 1,
            },
        ],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "device": "cpu",
            "max_epochs": 1,
            "train_data_loader": "@loader",
            "network": "@network",
            "optimizer": "@optimizer",
            "loss_function": "$torch.nn.MSELoss()",
            "train_handlers": "@train#handlers",
        },
    },
    "run": ["$@train#trainer.run()"],
}
FEDERATION = {
    "+train#handlers": [
        {
            "_target_": "flare_adapters.monai.FLHandler",
            "every_n_epochs": 1,
            "evaluator": "@validate#evaluator",
        }
    ]
}


def start_bundle(folder: Path, site: Path) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "monai.bundle", "run"),
        *("--config_file", "['train.json','fl.json']"),
        *("--meta_file", "None", "--logging_file", "False"),
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "FLARE_SITE": str(site), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_second_config_file_makes_a_bundle_federated(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3, selection=Selection(sites=2)))
    files = [
        site_file(name, server.endpoint, index, 2, patience_s=100)
        for index, name in enumerate("ab")
    ]
    (tmp_path / "train.json").write_text(json.dumps(BUNDLE))
    (tmp_path / "fl.json").write_text(json.dumps(FEDERATION))

    sites = [start_bundle(tmp_path, file) for file in files]
    said = [site.communicate(timeout=110)[0] for site in sites]

    assert [site.returncode for site in sites] == [0, 0], "\n".join(said)
    assert furthest(models(server)[-1], centralised(server)) <= 1e-6
    for name in "ab":
        last = tmp_path / f"models-{name}" / "model_epoch=3.pt"
        saved = linear()
        saved.load_state_dict(torch.load(last, weights_only=True))
        assert furthest(models(server)[-1], saved) == 0.0
    assert server.result().sites.keys() == {"a", "b"}
    assert all("mse" in one for one in server.result().sites.values())


def centralised(server: RunningServer) -> nn.Module:
    """Train on the rows of both sites, from the same first model."""
    network = linear()
    first = models(server)[0]
    network.load_state_dict({n: torch.from_numpy(first[n].copy()) for n in first})
    optimizer = sgd(network)
    images = torch.cat(
        [
            torch.randn(num, 4, generator=torch.Generator().manual_seed(index))
            for index, num in enumerate([24, 40])
        ]
    )
    for _ in range(3):
        optimizer.zero_grad()
        loss_on(network, (images, images.sum(1, keepdim=True))).backward()
        optimizer.step()
    return network


def test_a_bundle_runs_under_simulate(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(BUNDLE))
    (tmp_path / "fl.json").write_text(json.dumps(FEDERATION))
    script = tmp_path / "run_bundle.py"
    script.write_text(
        'from monai.bundle import run\nrun(config_file=["train.json", "fl.json"])\n'
    )
    options = ["--sites", "2", "--rounds", "2", "--run-dir", "r"]

    done = subprocess.run(
        [COMMAND, "simulate", script.name, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "r" / "rounds.jsonl").read_text().splitlines()) == 2
