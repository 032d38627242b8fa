"""The command that says what a cut costs, with a short one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.cut import wrongs
from chaos.federation import Outcome

_ROOT = Path(__file__).parents[2]
_ALONE = Outcome(blake3="ab", seconds=3, starts={"server": 1}, problems=[], said={})
_GOOD = replace(_ALONE, seconds=3 + 60 + 4.5)


@pytest.mark.timeout(120)
def test_a_cut_costs_its_length_and_little_more_and_the_model_is_the_same() -> None:
    command = [sys.executable, "-m", "tests.chaos.cut", "--seconds", "2.5"]

    done = subprocess.run(
        command,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},  # also under PYTHONSAFEPATH
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same model") == 2


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (replace(_GOOD, seconds=3 + 60 + 5.5), "MORE THAN 5 s"),
        (replace(_GOOD, blake3="cd"), "ANOTHER MODEL"),
        (replace(_GOOD, seconds=3), "the cut never came"),
        (replace(_GOOD, starts={"b": 2}), "started again: b"),
        (replace(_GOOD, problems=["b did not end"]), "b did not end"),
    ],
)
def test_what_is_not_as_it_should_be_is_told(outcome: Outcome, words: str) -> None:
    assert wrongs(_ALONE, _GOOD, seconds=60) == []

    assert wrongs(_ALONE, outcome, seconds=60) == [words]
