"""A script that says nothing of a federation takes part as if it had said so."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from adapters.scripts import silent
from adapters.sites import records
from flare_core import Plan
from flare_core.application import Result
from flare_core.management._unchanged import adapted
from simulated import COMMAND
from support import RunServer, SiteFile

ROUNDS = 3
ALONE = "trains at this site alone"
Play: TypeAlias = Callable[[str, str], Path]
"""Plays a federation of two sites, once for all tests, and returns its folder."""
SAYS = [
    ("lightning", "callback"),
    ("lightning", "late"),
    ("lightning", "strategy"),
    ("huggingface", "callback"),
    ("huggingface", "late"),
]
pytestmark = pytest.mark.timeout(300)  # several processes import a framework at once


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def played(framework: str, says: str) -> Path:
        run_dir = folder / f"{framework}-{says}"
        options = ["--sites", "2", "--rounds", str(ROUNDS), "--run-dir", str(run_dir)]
        arguments = [framework, "{index}", says]
        done = subprocess.run(
            [COMMAND, "simulate", silent.__file__, *options, "--", *arguments],
            cwd=folder,
            env=os.environ | {"FLARE_SITE": "off"},  # of the shell, not of the sites
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return run_dir

    return played


def result(folder: Path) -> Result:
    return msgspec.json.decode((folder / "result.json").read_bytes(), type=Result)


def said(folder: Path) -> list[str]:
    return [(folder / f"site-{number}.log").read_text() for number in (1, 2)]


@pytest.mark.parametrize("framework", ["lightning", "huggingface"])
def test_a_silent_script_plays_every_round(framework: str, play: Play) -> None:
    folder = play(framework, "nothing")

    assert result(folder).rounds == ROUNDS
    assert result(folder).sites.keys() == {"site-1", "site-2"}


@pytest.mark.parametrize(("framework", "says"), SAYS)
def test_ends_with_the_same_model_as_a_script_that_says_it(
    framework: str, says: str, play: Play
) -> None:
    silent_one, other = play(framework, "nothing"), play(framework, says)

    assert result(silent_one).blake3 == result(other).blake3


@pytest.mark.parametrize("framework", ["lightning", "huggingface"])
def test_a_later_training_is_as_long_as_it_was_and_says_once_that_it_is_alone(
    framework: str, play: Play
) -> None:
    for words in said(play(framework, "nothing")):
        assert f"epochs {ROUNDS} 2" in words
        assert words.count(ALONE) == 1


@pytest.mark.parametrize(
    ("framework", "callbacks"),
    [
        ("lightning", "FirstFit"),
        ("huggingface", "DefaultFlowCallback PrinterCallback"),
    ],
)
def test_a_trainer_keeps_nothing_of_the_federation(
    framework: str, callbacks: str, play: Play
) -> None:
    for words in said(play(framework, "nothing")):
        assert f"callbacks {callbacks}\n" in words


@pytest.mark.parametrize(("framework", "says"), SAYS)
def test_a_script_that_says_it_trains_elsewhere_without_a_word(
    framework: str, says: str, play: Play
) -> None:
    for words in said(play(framework, says)):
        assert f"epochs {ROUNDS} 2" in words
        assert ALONE not in words


def test_the_ranks_of_torchrun_are_one_site(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=ROUNDS))
    site = site_file("a", server.endpoint, patience_s=100)
    environment = adapted(os.environ | {"FLARE_SITE": str(site)})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    done = subprocess.run(
        [sys.executable, *torchrun, silent.__file__, "huggingface", "0", "nothing"],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert server.result().rounds == ROUNDS
    assert [record.num_examples for record in records(server)] == [
        silent.NUM_ROWS
    ] * ROUNDS
    assert done.stdout.count(f"epochs {ROUNDS} 2") == 2
