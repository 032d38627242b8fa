import random
import statistics
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flare_core.application import RoundPlayed
from flare_core.communication import CHUNK_BYTES, WINDOW
from proxy import Direction, Proxy
from site_scripts import add, plan, play
from support import RunServer, SiteFile

_MODEL_BYTES = 12 * CHUNK_BYTES + 12_345
_OVERHEAD_BYTES = 100_000
"""Of all messages but chunks, and of the chunks' headers."""


def _model() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal(_MODEL_BYTES // 4, np.float32)}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_transfer_cut_at_any_byte_goes_on_where_it_was(
    direction: Direction,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    hashes: set[str] = set()
    resent: list[int] = []
    of_the_script = random.getstate()
    for seed in range(20):
        server = run_server(plan(sites=1))
        at = random.Random(seed).randrange(2_000, 2 * _MODEL_BYTES)  # noqa: S311

        with Proxy(server.endpoint) as proxy:
            proxy.cut(direction, at)
            file = site_file("a", proxy.endpoint)
            pool.submit(play, file, _model(), add(1)).result(60)

        assert server.result().error == ""
        assert proxy.num_cuts == 1
        (played,) = [e.record for e in server.told(RoundPlayed)]
        hashes.add(played.blake3)
        resent.append(proxy.passed[direction] - 2 * _MODEL_BYTES)

    assert len(hashes) == 1
    assert random.getstate() == of_the_script  # nobody else draws from it
    assert max(resent) < (WINDOW + 1) * CHUNK_BYTES + _OVERHEAD_BYTES
    # one that is held up for longer than the other waits asks for more once again
    assert statistics.median(resent) < 2 * CHUNK_BYTES + _OVERHEAD_BYTES
