"""The documentation keeps up with the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flare_core

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO_PER_FRAMEWORK = [
    "federate-a-lightning-script",
    "federate-a-hugging-face-script",
    "federate-a-monai-script",
    "federate-your-own-loop",
]
FLARE = Path(sys.executable).with_name("flare")
ERRORS = re.compile(r"│ error\s+│\s+([\d.]+) │\s+([\d.]+) │\s+([\d.]+) │")


def _headings(page: str) -> list[str]:
    text = (DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("## ")]


@pytest.mark.parametrize("name", flare_core.__all__)
def test_the_reference_knows_what_is_public(name: str) -> None:
    reference = (DOCS / "reference" / "core.md").read_text(encoding="utf-8")

    assert f":: flare_core.{name}\n" in reference


@pytest.mark.parametrize("page", HOW_TO_PER_FRAMEWORK[1:])
def test_every_framework_has_the_same_headings(page: str) -> None:
    assert _headings(page) == _headings(HOW_TO_PER_FRAMEWORK[0])


def test_the_tutorial_ends_as_it_says(tmp_path: Path) -> None:
    script = DOCS / "tutorials" / "line.py"
    promised = ERRORS.search(script.with_name("first-federation.md").read_text("utf-8"))

    command = [str(FLARE), "simulate", str(script), "--sites", "3", "--rounds", "10"]
    done = subprocess.run(
        [*command, "--baselines", "--run-dir", str(tmp_path / "run")],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert promised is not None
    assert done.returncode == 0, done.stderr
    found = ERRORS.search(done.stdout)
    assert found is not None, done.stdout
    assert found.groups() == promised.groups()
