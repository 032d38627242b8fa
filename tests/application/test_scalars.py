"""Scalars of NumPy and torch are Python's own before anything leaves."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import flare_core as flare
from flare_core.application import RoundPlayed, RoundRecord
from site_scripts import WAIT_S, model, plan
from support import RunServer, SiteFile


def _submit(site: Path, **said: Any) -> None:
    with flare.join(model(1), site=site) as client:
        for current in client:
            current.submit(current.weights, **said)
        client.report({"auc": np.float32(0.5)})


def test_numpys_scalars_are_taken(run_server: RunServer, site_file: SiteFile) -> None:
    server = run_server(plan(sites=1))

    _submit(
        site_file("a", server.endpoint),
        num_examples=np.int64(7),
        metrics={"loss": np.float64(0.5), "accuracy": np.float32(0.25)},
    )

    (played,) = server.told(RoundPlayed)
    assert played.record.num_examples == 7
    assert played.record.metrics == {"loss": 0.5, "accuracy": 0.25}
    assert server.result().metrics == {"auc": 0.5}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"num_examples": 7.0}, r"num_examples: expected an integer, got 7.0 \(float"),
        ({"num_examples": 7, "metrics": {"f1": [1, 2]}}, r"'f1': expected one number"),
    ],
)
def test_what_is_no_number_is_named_before_anything_leaves(
    said: dict[str, Any],
    expected: str,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(plan(sites=1))

    with pytest.raises(TypeError, match=expected):
        _submit(site_file("a", server.endpoint), **said)

    manifest = (tmp_path / "manifest-a.jsonl").read_bytes()
    assert b'"round":0' not in manifest
    assert "TypeError" in server.result().error


def test_a_metric_that_is_not_finite_is_not_in_the_record(
    run_server: RunServer, site_file: SiteFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server(plan(sites=1))

    _submit(
        site_file("a", server.endpoint),
        num_examples=1,
        metrics={"loss": np.inf, "accuracy": 0.5},
    )

    (played,) = server.told(RoundPlayed)
    line = msgspec.json.encode(played.record)
    assert msgspec.json.decode(line, type=RoundRecord) == played.record
    assert played.record.metrics == {"accuracy": 0.5}
    assert "site 'a': metric 'loss' is inf" in caplog.text


def test_a_mean_beyond_all_numbers_is_left_out_of_the_record(
    run_server: RunServer, site_file: SiteFile, pool: ThreadPoolExecutor
) -> None:
    server = run_server(plan(sites=2))
    huge = sys.float_info.max

    def submit(name: str) -> None:
        with flare.join(model(1), site=site_file(name, server.endpoint)) as client:
            for current in client:
                metrics = {"loss": huge, "auc": 0.5}
                current.submit(current.weights, num_examples=9, metrics=metrics)
            client.report(metrics)

    for site in [pool.submit(submit, name) for name in "ab"]:
        site.result(WAIT_S)

    (record,) = (e.record for e in server.told(RoundPlayed))
    assert record.metrics == {"auc": 0.5}
    assert msgspec.json.decode(msgspec.json.encode(record), type=RoundRecord) == record
    assert server.result().metrics == {"auc": 0.5}
