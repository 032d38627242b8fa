"""Fixtures for what strangers and members do to a server, and to a run beside them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from deployed import Beside, Deployment, deployment


@pytest.fixture(autouse=True)
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the sites; set up first, so that the server stops before them."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        yield pool


@pytest.fixture
def deployed() -> Iterator[Deployment]:
    """A server with the limits that nobody has changed."""
    with deployment() as deployed:
        yield deployed


@pytest.fixture(scope="session")
def undisturbed() -> str:
    """The hash of the final model of the run beside, if nothing happens."""
    with deployment() as deployed, ThreadPoolExecutor() as pool:
        return Beside(deployed, pool).blake3()


@pytest.fixture
def beside(deployed: Deployment, pool: ThreadPoolExecutor) -> Iterator[Beside]:
    """A run that is being played."""
    with closing(Beside(deployed, pool)) as beside:
        yield beside
