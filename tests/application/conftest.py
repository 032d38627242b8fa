from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(autouse=True)
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the sites; set up first, so that the server stops before them."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield pool
