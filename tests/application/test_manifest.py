from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from blake3 import blake3

import flare_core as flare
from flare_core.application import ManifestEntry, Published
from flare_core.communication import pack
from site_scripts import WAIT_S, Local, add, model, plan, play
from support import RunServer, SiteFile


def _entries(folder: Path, site: str) -> list[ManifestEntry]:
    lines = (folder / f"manifest-{site}.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ManifestEntry) for line in lines]


def _expected(
    run: str, round_number: int, state: flare.ModelState
) -> list[ManifestEntry]:
    return [
        ManifestEntry(
            run=run,
            round=round_number,
            name=spec.name,
            dtype=spec.dtype,
            shape=spec.shape,
            bytes=len(body),
            blake3=blake3(body).hexdigest(),
        )
        for spec, body in zip(state.layout.tensors, pack(state)[1:], strict=True)
    ]


def test_the_manifest_lists_every_tensor_that_left_and_no_other(
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(plan(rounds=2))
    initial = flare.ModelState(
        {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3),
            "n": np.asarray(3),
            "packed": np.ones(4, ml_dtypes.float4_e2m1fn),
        }
    )

    def ones(current: flare.ClientRound) -> Local:
        local = {n: np.full_like(w, current.number) for n, w in initial.items()}
        return local, 1

    sites = [
        pool.submit(play, site_file(name, server.endpoint), initial, ones)
        for name in "ab"
    ]
    for site in sites:
        site.result(WAIT_S)

    rounds = [
        flare.ModelState({n: np.full_like(w, i) for n, w in initial.items()})
        for i in range(2)
    ]
    run = server.server.name
    trained = [entry for i in range(2) for entry in _expected(run, i, rounds[i])]
    assert _entries(tmp_path, "a") == [*_expected(run, -1, initial), *trained]
    assert _entries(tmp_path, "b") == trained  # its initial weights stayed


def test_the_bytes_of_a_packed_tensor_are_those_on_the_wire(
    pool: ThreadPoolExecutor,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(plan(sites=1))
    initial = {"packed": np.asarray([1, 2, 3, 4], ml_dtypes.float4_e2m1fn)}
    path = site_file("a", server.endpoint)
    pool.submit(play, path, initial, lambda now: (now.weights, 1)).result(WAIT_S)

    entry = _entries(tmp_path, "a")[0]

    assert entry.bytes == 2
    # 1, 2, 3 and 4 are the codes 2, 4, 5 and 6; the first is the low half of a byte
    assert entry.blake3 == blake3(b"\x42\x65").hexdigest()


def test_nothing_leaves_that_cannot_be_recorded(
    run_server: RunServer, tmp_path: Path
) -> None:
    server = run_server(plan(sites=1))
    (tmp_path / "occupied").write_text("a file, where a folder should be")
    path = tmp_path / "a.toml"
    path.write_text(f'name = "a"\nserver = "{server.endpoint}"\nfolder = "occupied"\n')

    with pytest.raises(
        flare.ConfigurationError, match=r"cannot write .*nothing was sent"
    ):
        play(path, model(1), add(1))

    assert "nothing was sent" in server.result().error
    assert not server.told(Published)
