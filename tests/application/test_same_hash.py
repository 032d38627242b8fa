"""The global model's bits depend on the updates and on nothing else."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flare_core as flare
from flare_core.application import RoundPlayed
from flare_core.communication import _mailbox, _session, _streams
from site_scripts import Local, Turns, plan, play
from support import RunServer, SiteFile

_SITES = ("a", "b", "c")
_STEPS = {"a": 0.1, "b": -3e4, "c": 1e-7}
_EXAMPLES = {"a": 7, "b": 1_001, "c": 13}
_TUNINGS = [(1 << 20, 8, 1), (4_096, 1, 2), (10_007, 3, 3), (65_536, 16, 1)]
"""Bytes of a chunk, chunks of a window, threads."""


def _model() -> dict[str, npt.ArrayLike]:
    rng = np.random.default_rng(1)
    return {
        "weight": rng.standard_normal((300, 401), np.float32),
        "half": rng.standard_normal(70_001).astype(np.float16),
        "running": rng.standard_normal(999),
        "count": np.int64(3),
    }


def _moved(values: npt.NDArray[Any], step: float) -> npt.NDArray[Any]:
    return np.asarray(values + step).astype(values.dtype)


def _expected(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the weighted mean in float64, rounded once; done by hand."""
    if name == "count":
        return np.asarray(max(int(_moved(values, step)) for step in _STEPS.values()))
    total = np.zeros(values.shape)
    for site, step in _STEPS.items():
        total += _moved(values, step).astype(np.float64) * _EXAMPLES[site]
    return (total / sum(_EXAMPLES.values())).astype(values.dtype)


def test_chunks_windows_threads_and_arrivals_change_no_bit(
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashes = set()
    for tuning, order in itertools.product(_TUNINGS, itertools.permutations(_SITES)):
        chunk_bytes, window, num_threads = tuning
        for module in (_streams, _session, _mailbox):
            monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
            monkeypatch.setattr(module, "WINDOW", window, raising=False)
        turns = Turns(order)
        server = run_server(
            plan(sites=3), observer=turns.observer, num_threads=num_threads
        )

        finals = [
            pool.submit(_play, turns, name, site_file(name, server.endpoint))
            for name in _SITES
        ]

        for final in finals:
            for name, values in final.result(60).items():
                expected = _expected(name, np.asarray(_model()[name]))
                np.testing.assert_array_equal(values, expected, strict=True)
        (played,) = [e.record for e in server.told(RoundPlayed)]
        hashes.add(played.blake3)
    assert len(hashes) == 1


def _play(turns: Turns, name: str, site: Path) -> flare.ModelState:
    def train(current: flare.ClientRound) -> Local:
        turns.wait(name)
        local = {n: _moved(v, _STEPS[name]) for n, v in current.weights.items()}
        return local, _EXAMPLES[name]

    return play(site, _model(), train)
