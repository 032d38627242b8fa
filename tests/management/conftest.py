"""Fixtures for the tests of simulations and of deployments."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agents import AgentProcess, Deploy, StartAgent
from deployed import Deployment, deployment
from simulated import COMMAND, HEAD, TIMEOUT_S, Flare, WriteScript


@pytest.fixture
def script(tmp_path: Path) -> WriteScript:
    """Write a site's script."""
    numbers = itertools.count()

    def write(body: str) -> Path:
        path = tmp_path / f"train{next(numbers)}.py"
        path.write_text(HEAD + body)
        return path

    return write


@pytest.fixture
def flare(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flare:
    """Run the command in the test's folder; what it keeps of a failed check, too."""
    temporary = tmp_path_factory.mktemp("temporary")

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "160", "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    return run


@pytest.fixture
def deploy() -> Iterator[Deploy]:
    """Start servers that are stopped when the test ends."""
    with ExitStack() as running:

        def start(**settings: float) -> Deployment:
            return running.enter_context(deployment(process=False, **settings))

        yield start


@pytest.fixture
def agent() -> Iterator[StartAgent]:
    """Start agents that are ended when the test ends."""
    with ExitStack() as running:

        def start(home: Path) -> AgentProcess:
            return running.enter_context(closing(AgentProcess(home)))

        yield start
