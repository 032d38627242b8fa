"""A Bundle that says nothing of a federation takes part as if it had said so."""

import copy
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler
from torch import nn

from adapters.test_monai_bundle import BUNDLE
from flare_adapters._unchanged._monai import FirstTrainer, add_handler
from flare_adapters.monai._loop import evaluator_of
from flare_core.application import Result
from simulated import COMMAND

ROUNDS = 3
OURS = {"_target_": "flare_adapters._unchanged._monai.FirstTrainer"}
THEIRS = {"_target_": "StatsHandler"}
RUN_BUNDLE = Path(__file__).parents[2] / "examples/unchanged_bundle/run_bundle.py"
SAYS_IT = {"+train#handlers": [{"_target_": "flare_adapters.monai.FLHandler"}]}


def simulate(folder: Path, run_dir: str, *config_files: str) -> Result:
    options = ["--sites", "2", "--rounds", str(ROUNDS), "--run-dir", run_dir]
    arguments = ["--config_file", str(list(config_files)), "--index", "{index}"]
    done = subprocess.run(
        [COMMAND, "simulate", RUN_BUNDLE, *options, "--", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(
        (folder / run_dir / "result.json").read_bytes(), type=Result
    )


def silent_bundle() -> dict[str, Any]:
    bundle: dict[str, Any] = copy.deepcopy(BUNDLE)
    bundle |= {"imports": ["$import torch", "$import monai"], "index": 0}
    bundle["train"]["handlers"] = bundle["train"]["handlers"][:1]  # that validates
    bundle["initialize"] = "$monai.utils.set_determinism(seed=0)"
    return bundle


@pytest.mark.timeout(300)  # two processes import MONAI at once, twice
def test_ends_with_the_same_model_as_a_bundle_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(silent_bundle()))
    (tmp_path / "fl.json").write_text(json.dumps(SAYS_IT))

    silent = simulate(tmp_path, "silent", "train.json")
    other = simulate(tmp_path, "other", "train.json", "fl.json")

    assert silent.rounds == ROUNDS
    assert silent.blake3 == other.blake3
    assert silent.sites.keys() == {"site-1", "site-2"}
    assert all("mse" in metrics for metrics in silent.sites.values())


def config(said: Any, handlers: list[Any] | None = None) -> ConfigParser:
    trainer = {"_target_": "SupervisedTrainer", "train_handlers": said}
    return ConfigParser({"train": {"trainer": trainer, "handlers": handlers or []}})


@pytest.mark.parametrize("handlers", [None, []])
def test_a_trainer_without_handlers_gets_one(handlers: Any) -> None:
    parser = config(handlers)

    add_handler(parser)

    assert parser["train#trainer#train_handlers"] == [OURS]


def test_the_handler_stands_before_those_of_the_trainer() -> None:
    parser = config([THEIRS])

    add_handler(parser)

    assert parser["train#trainer#train_handlers"] == [OURS, THEIRS]


@pytest.mark.parametrize(
    ("said", "num_theirs"),
    [
        ("@train#handlers", 3),
        ("@##handlers", 3),
        ("%train#handlers", 3),
        ("$@train#handlers[: -2 if True else None]", 1),  # of a rank that is not first
    ],
)
def test_handlers_that_are_referred_to_are_left_where_they_are(
    said: str, num_theirs: int
) -> None:
    theirs = [{"_target_": "collections.Counter"}] * 3
    parser = config(said, theirs)

    add_handler(parser)

    assert parser["train#handlers"] == theirs
    handlers = parser.get_parsed_content("train#trainer#train_handlers")
    kinds = [type(handler).__name__ for handler in handlers]
    assert kinds == ["FirstTrainer", *["Counter"] * num_theirs]


@pytest.mark.parametrize(
    "found",
    [
        {"train": {"trainer": {"train_handlers": [SAYS_IT["+train#handlers"][0]]}}},
        {"train": {"trainer": {}}, "x": "$flare_adapters.monai.FLHandler(site='off')"},
        {"infer": {"evaluator": {}}},
    ],
    ids=["handler", "expression", "no-trainer"],
)
def test_a_bundle_that_says_it_or_trains_nothing_is_left_alone(
    found: dict[str, Any],
) -> None:
    parser = ConfigParser(copy.deepcopy(found))

    add_handler(parser)

    assert {k: v for k, v in parser.get().items() if k != "_meta_"} == found


def test_the_handler_is_added_once() -> None:
    parser = config("@train#handlers", [THEIRS])

    add_handler(parser)
    once = copy.deepcopy(parser.get())
    add_handler(parser)

    assert parser.get() == once


def test_a_trainer_that_code_makes_is_told_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parser = ConfigParser({"train": {"trainer": "$make_trainer()"}})

    with caplog.at_level(logging.WARNING):
        add_handler(parser)

    assert "'$make_trainer()': expected a component with a _target_" in caplog.text


def test_a_trainer_after_the_first_trains_alone_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLARE_ADAPT", "taken")
    trainer = Engine(lambda _engine, _batch: None)

    with caplog.at_level(logging.WARNING):
        FirstTrainer().attach(trainer)
        trainer.run([0, 1], max_epochs=2)

    assert "This trainer trains at this site alone" in caplog.text
    assert trainer.state.iteration == 4


@pytest.mark.parametrize(
    "settings",
    [{"interval": 1}, {"interval": 2}, {"interval": 5, "epoch_level": False}],
)
def test_the_evaluator_of_a_validation_handler_is_found(
    settings: dict[str, Any],
) -> None:
    network = nn.Linear(1, 1)
    evaluator = SupervisedEvaluator(torch.device("cpu"), [], network, epoch_length=1)
    trainer = Engine(lambda _engine, _batch: None)
    handler = ValidationHandler(**settings)

    handler.attach(trainer)
    handler.set_validator(evaluator)

    assert evaluator_of(trainer) is evaluator


def test_an_engine_that_validates_nothing_has_no_evaluator() -> None:
    trainer = Engine(lambda _engine, _batch: None)

    assert evaluator_of(trainer) is None
