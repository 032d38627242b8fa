"""What sites say of their updates weighs them, and who does not say it is refused."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pytest

import flare_core as flare
from flare_core.application import RoundPlayed, SiteRefused, replay
from site_scripts import WAIT_S, model, plan
from support import RunningServer, RunServer, SiteFile

Say: TypeAlias = dict[str, Any]
Play: TypeAlias = Callable[..., tuple[RunningServer, Sequence[flare.ModelState]]]
NOVA = flare.StrategySettings(name="fednova")
FAIR = flare.StrategySettings(
    name="qfedavg", settings={"learning_rate": 0.5, "q": 2, "metric": "val_loss"}
)


def _site(file: Path, step: float, said: Say) -> flare.ModelState:
    """Add a number to all weights in each round, and say something of it."""
    with flare.join(model(0.0), site=file) as client:
        for current in client:
            weights = {"w": current.weights["w"] + np.float32(step)}
            current.submit(weights, **said)
    return client.weights


@pytest.fixture
def played(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor, tmp_path: Path
) -> Play:
    """Play two rounds of sites that go a step each; return what they end with."""

    def played(
        strategy: flare.StrategySettings, *sites: tuple[float, Say]
    ) -> tuple[RunningServer, Sequence[flare.ModelState]]:
        what = msgspec.structs.replace(
            plan(rounds=2, sites=len(sites)), strategy=strategy, keep_updates=True
        )
        server = run_server(what, folder=tmp_path / "run")
        files = [site_file(name, server.endpoint) for name in "ab"[: len(sites)]]
        finals = [
            pool.submit(_site, file, *site)
            for file, site in zip(files, sites, strict=True)
        ]
        return server, [final.result(WAIT_S) for final in finals]

    return played


def _derived_again(server: RunningServer, strategy: flare.StrategySettings) -> bool:
    records = [e.record for e in server.told(RoundPlayed)]
    what = msgspec.structs.replace(plan(rounds=2), strategy=strategy, keep_updates=True)
    folder = server.server.spool.parent
    return all(not one.partings for one in replay(what, records, folder))


def test_sites_are_weighed_by_the_steps_that_they_count(played: Play) -> None:
    few = 4.0, {"num_examples": 30, "num_steps": 2}
    many = 40.0, {"num_examples": 10, "num_steps": 10}

    server, finals = played(NOVA, few, many)

    # each round goes by (.75 * 2 + .25 * 10) * (.75 * 4 / 2 + .25 * 40 / 10)
    assert finals[0]["w"].tolist() == finals[1]["w"].tolist() == [2 * 4 * 2.5]
    assert _derived_again(server, NOVA)


def test_sites_are_weighed_by_the_loss_of_the_global_model(played: Play) -> None:
    bad = 1.0, {"num_examples": 1, "global_metrics": {"val_loss": 3.0}}
    good = -1.0, {"num_examples": 1, "global_metrics": {"val_loss": 1.0}}

    server, finals = played(FAIR, bad, good)

    # (9 - 1) / 2 by the sum of F^2 + 2 F / .5, halved; twice
    expected = 2 * 8 / (9 + 2 * 3 / 0.5 + 1 + 2 * 1 / 0.5)
    assert finals[0]["w"] == pytest.approx([expected], rel=1e-6)
    assert _derived_again(server, FAIR)


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (NOVA, "site 'a': num_steps: expected its optimizer steps, at least 1, which"),
        (FAIR, "site 'a': global metric 'val_loss': expected the loss of the global"),
    ],
    ids=["steps", "loss"],
)
def test_who_does_not_say_what_the_strategy_needs_is_told_how(
    strategy: flare.StrategySettings,
    sentence: str,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    what = msgspec.structs.replace(plan(rounds=2, sites=1), strategy=strategy)
    server = run_server(what)

    with pytest.raises(flare.UpdateError) as error:
        _site(site_file("a", server.endpoint), 1.0, {"num_examples": 3})

    assert str(error.value).startswith(sentence)
    assert [e.refusal for e in server.told(SiteRefused)] == [error.value.refusal]


def test_a_count_of_steps_that_is_none_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))

    with pytest.raises(flare.UpdateError, match="num_steps: expected at least 0"):
        _site(
            site_file("a", server.endpoint), 1.0, {"num_examples": 3, "num_steps": -1}
        )


def test_a_count_of_steps_that_is_no_integer_never_leaves(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan(sites=1))

    with pytest.raises(TypeError, match=r"num_steps: expected an integer, got 1\.5"):
        _site(
            site_file("a", server.endpoint), 1.0, {"num_examples": 3, "num_steps": 1.5}
        )
