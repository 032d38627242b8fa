import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flare_core.application import RoundPlayed
from flare_core.communication import CHUNK_BYTES
from proxy import Direction, Proxy
from site_scripts import add, plan, play
from support import RunServer, SiteFile

_MODEL_BYTES = 12 * CHUNK_BYTES + 12_345
_OVERHEAD_BYTES = 100_000
"""Of all messages but chunks, and of the chunks' headers."""


def _model() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal(_MODEL_BYTES // 4, np.float32)}


@pytest.fixture(scope="module")
def undisturbed() -> list[str]:
    return []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_transfer_cut_at_any_byte_goes_on_where_it_was(
    *,
    direction: Direction,
    seed: int,
    undisturbed: list[str],
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    server = run_server(plan(sites=1))
    initial = _model()
    at = random.Random(seed).randrange(2_000, 2 * _MODEL_BYTES)  # noqa: S311

    with Proxy(server.endpoint) as proxy:
        proxy.cut(direction, at)
        site = pool.submit(play, site_file("a", proxy.endpoint), initial, add(1))
        site.result(60)

    assert server.result().error == ""
    assert proxy.num_cuts == 1
    resent = proxy.passed[direction] - 2 * _MODEL_BYTES
    assert resent < 2 * CHUNK_BYTES + _OVERHEAD_BYTES
    (played,) = [e.record for e in server.events if isinstance(e, RoundPlayed)]
    undisturbed.append(played.blake3)
    assert set(undisturbed) == {played.blake3}
