"""Fixtures for tests of adapters."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flare_core import Plan, Selection
from flare_core.application import Observer
from support import RunningServer, RunServer, SiteFile

# cuBLAS reads it when it starts; else it adds up in an order of its own
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Have a GPU compute the same twice."""
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def pair(
    run_server: RunServer, site_file: SiteFile
) -> Callable[..., tuple[RunningServer, list[Path]]]:
    """Start a server for the sites a and b."""

    def start(
        plan: Plan | None = None, observer: Observer = lambda _: None
    ) -> tuple[RunningServer, list[Path]]:
        plan = plan or Plan(rounds=2, selection=Selection(sites=2))
        server = run_server(plan, observer=observer)
        files = [site_file(n, server.endpoint, i, 2) for i, n in enumerate("ab")]
        return server, files

    return start
