"""The examples run as they are, and leave what their frameworks load by themselves."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
Simulate: TypeAlias = Callable[..., Path]
pytestmark = [
    pytest.mark.timeout(600),  # frameworks are imported by several processes at once
    pytest.mark.filterwarnings("default"),  # and talk a lot when they load
]


def module(name: str) -> ModuleType:
    """Import an example, as the reader of its results would."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def _as_a_user_has_it() -> dict[str, str]:
    """Return the environment without what tox sets, which hides a Bundle's scripts."""
    return {n: value for n, value in os.environ.items() if n != "PYTHONSAFEPATH"}


def python(*arguments: str | Path, folder: Path, **variables: str) -> str:
    """Run Python in a folder and return what it said."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**_as_a_user_has_it(), "HF_HUB_OFFLINE": "1", **variables},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    """Play an example with two sites, two rounds of one step; return its folder."""

    def play(name: str, *arguments: str) -> Path:
        folder = tmp_path / Path(name).stem
        smallest = ["--sites", "2", "--rounds", "2"]
        smallest += ["--set", "schedule.every_n_steps=1", "--run-dir", str(folder)]
        script = str(EXAMPLES / f"{name}.py")
        command = ["-m", "flare_core.management.cli", "simulate", script]
        python(*command, *smallest, "--", *arguments, folder=tmp_path)
        return folder

    return play


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


def test_lightning_loads_the_checkpoint_of_every_site(simulate: Simulate) -> None:
    model = module("lightning_heart").HeartModel

    folder = simulate("lightning_heart")

    first, second = (
        model.load_from_checkpoint(folder / f"heart-site-{n}.ckpt").state_dict()
        for n in (1, 2)
    )
    assert equal(first, second)


def test_peft_loads_the_lora_weights_of_every_site(simulate: Simulate) -> None:
    from peft import PeftModel  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415

    folder = simulate("huggingface_sentiment")

    first, second = (
        PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(
                module("huggingface_sentiment").language_model()
            ),
            folder / f"sentiment-site-{n}",
        )
        for n in (1, 2)
    )
    ids = torch.tensor([[101, 2204, 102]])
    assert torch.equal(first(ids).logits, second(ids).logits)


def test_torch_loads_the_network_of_every_hospital(simulate: Simulate) -> None:
    network = module("monai_brain").tissue_network()

    folder = simulate("monai_brain")

    first, second = (
        torch.load(folder / f"model-site-{n}.pt", weights_only=True) for n in (1, 2)
    )
    network.load_state_dict(first)
    assert equal(first, second)


def test_torch_loads_what_a_loop_of_ones_own_has_learnt(simulate: Simulate) -> None:
    network = module("pytorch_loop").network()

    folder = simulate("pytorch_loop")

    first, second = (
        torch.load(folder / f"digits-site-{n}.pt", weights_only=True) for n in (1, 2)
    )
    network.load_state_dict(first)
    assert equal(first, second)


PART = ("--part", "{index}", "--parts", "{count}")
UNCHANGED = [
    file
    for file in sorted(EXAMPLES.rglob("*.*"))
    if "unchanged" in str(file) and file.suffix in {".json", ".py"}
]
CONFIG = EXAMPLES / "unchanged_bundle" / "configs" / "train.json"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unchanged_lightning", PART),
        ("unchanged_huggingface", PART),
        ("unchanged_bundle/run_bundle", ("--config_file", str(CONFIG), *PART)),
    ],
)
def test_an_unchanged_script_is_federated(
    name: str, arguments: tuple[str, ...], simulate: Simulate
) -> None:
    folder = simulate(name, *arguments)

    result = json.loads((folder / "result.json").read_text())
    rounds = (folder / "rounds.jsonl").read_text().splitlines()
    assert result["rounds"] == 2
    assert all(len(json.loads(one)["sites"]) == 2 for one in rounds)


@pytest.mark.parametrize("file", UNCHANGED, ids=lambda file: file.name)
def test_an_unchanged_script_has_no_word_of_a_federation(file: Path) -> None:
    text = file.read_text()
    if file.suffix == ".py":  # what one types, it says; what runs does not
        _docstring, *code = ast.parse(text).body
        text = "\n".join(map(ast.unparse, code))

    assert "flare" not in text.lower()


def test_an_example_trains_alone_where_the_federation_is_off(tmp_path: Path) -> None:
    model = module("lightning_heart").HeartModel

    python(EXAMPLES / "lightning_heart.py", folder=tmp_path, FLARE_SITE="off")

    checkpoint = tmp_path / "heart-alone.ckpt"
    loaded = model.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] > 0
    assert equal(loaded.state_dict(), saved["state_dict"])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lightning_heart", 4),
        ("huggingface_sentiment", 4),
        ("monai_brain", 3),
        ("pytorch_loop", 4),
        ("unchanged_lightning", 4),
    ],
)
def test_all_is_dealt_out_and_everyone_is_scored_on_the_same(
    name: str, count: int
) -> None:
    load = module(name).load

    train, test = load(0, 1)
    shares = [load(index, count) for index in range(count)]

    assert sum(len(mine) for mine, _ in shares) == len(train)
    assert all(len(mine) > 0 for mine, _ in shares)
    assert {len(scored) for _, scored in shares} == {len(test)}


def test_the_quick_start_knows_its_examples(tmp_path: Path) -> None:
    said = python(EXAMPLES / "quickstart.py", "--help", folder=tmp_path)

    assert "lightning_heart" in said
    assert "huggingface_sentiment" in said
    assert "monai_brain" in said
