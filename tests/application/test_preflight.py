from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import flare_core as flare
from flare_core.application import Published, SiteJoined
from site_scripts import WAIT_S, add, model, plan, play
from support import RunServer, SiteFile

_STAYS = (flare.TensorSpec("base.w", "BF16", (4, 4)),)


def test_a_preflight_ends_each_script_and_no_weight_leaves(
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(plan(), preflight=True)

    scripts = [
        pool.submit(play, site_file(name, server.endpoint), model(1), add(1))
        for name in "ab"
    ]

    for script in scripts:
        passed = script.exception(WAIT_S)
        assert isinstance(passed, flare.PreflightPassed)
        assert passed.code == 0
    result = server.result()
    assert (result.rounds, result.blake3, result.error) == (0, "", "")
    assert not server.told(Published)
    assert not list(tmp_path.glob("manifest-*"))


def test_a_preflight_tells_what_would_leave_and_what_stays(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1), preflight=True)
    weights = flare.ModelState({"lora.A": np.zeros((2, 3), np.float32)})
    proposal = flare.Proposal(
        weights=weights,
        base="ab" * 32,
        schedule=flare.Schedule(every_n_steps=5),
        stays=_STAYS,
        horizon="10 epochs",
    )

    with pytest.raises(flare.PreflightPassed):
        flare.connect(flare.site(site_file("a", server.endpoint))).join(proposal)

    server.result()
    (joined,) = server.told(SiteJoined)
    assert joined == SiteJoined(
        "a", weights.layout, _STAYS, "ab" * 32, "every_n_steps = 5", "10 epochs"
    )


def test_a_preflight_finds_the_model_that_differs(
    pool: ThreadPoolExecutor, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(), preflight=True)
    a = pool.submit(play, site_file("a", server.endpoint), model(1), add(1))
    b = pool.submit(play, site_file("b", server.endpoint), model(1, 2), add(1))

    assert isinstance(b.exception(WAIT_S), flare.LayoutError)
    assert isinstance(a.exception(WAIT_S), flare.RunAbortedError)
    assert server.result().failed_site == "b"
