"""The best model of a real run: it outlives the server, and can be downloaded."""

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import final

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

import flare_core as flare
from deployed import Deployment, deployment
from flare_core import Plan, Selection, Stop
from flare_core.application import Result, RoundRecord
from flare_core.communication import RunInfo
from flare_core.management._deployment import check_server
from flare_core.management._run_reading import best_of, download
from simulated import COMMAND
from site_scripts import WAIT_S

_PLAN = Plan(
    rounds=9, selection=Selection(sites=2), stop=Stop(metric="loss", patience=3)
)
_SCORES = [4.0, 3.0, 3.5, 3.2, 3.1, 9.0]
_HELD_IN = 3
"""The best model is that of round 1 by then, and its file is no other's."""
_SIZE = 10_000


@final
class _Game:
    """Two sites in a round where one waits to be let go."""

    def __init__(self, deployed: Deployment, pool: ThreadPoolExecutor) -> None:
        self._deployed = deployed
        self._may_go, self._waits = threading.Event(), threading.Event()
        for site in "ab":
            deployed.member(site)
        deployed.create("demo", _PLAN)
        self._sites: list[Future[None]] = [
            pool.submit(self._play, deployed.site(site, "demo")) for site in "ab"
        ]
        assert self._waits.wait(WAIT_S)

    def _play(self, file: Path) -> None:
        with flare.join({"w": np.zeros(_SIZE, np.float32)}, site=file) as client:
            for current in client:
                if current.number == _HELD_IN:
                    self._waits.set()
                    assert self._may_go.wait(WAIT_S)
                current.submit(
                    {"w": current.weights["w"] + 1},
                    num_examples=1,
                    global_metrics={"loss": _SCORES[current.number]},
                )
            client.report({"loss": _SCORES[int(client.weights["w"][0])]})

    def ended(self) -> RunInfo:
        """Play it to its end."""
        self._may_go.set()
        for site in self._sites:
            site.result(WAIT_S)
        return self._deployed.ended("demo")

    def close(self) -> None:
        """Let everybody go."""
        self._may_go.set()


def _played(
    deployed: Deployment, game: _Game, folder: Path
) -> tuple[RunInfo, Result, list[RoundRecord]]:
    info = game.ended()
    with deployed.admin() as admin:
        download(admin, "demo", folder, best=True)
    result = msgspec.json.decode((folder / "result.json").read_bytes(), type=Result)
    lines = (folder / "rounds.jsonl").read_bytes().splitlines()
    return info, result, [msgspec.json.decode(one, type=RoundRecord) for one in lines]


@pytest.fixture
def game(deployed: Deployment, pool: ThreadPoolExecutor) -> Iterator[_Game]:
    """A run in the round where one waits."""
    with closing(_Game(deployed, pool)) as game:
        yield game


def test_the_best_model_is_downloaded_and_the_server_checks_it(
    game: _Game, deployed: Deployment, tmp_path: Path
) -> None:
    info, result, records = _played(deployed, game, tmp_path)

    assert (info.state, info.rounds) == ("finished", 5)
    assert result.best is not None
    assert (result.best.number, result.best.value) == (1, 3.0)
    assert result.best.blake3 == records[0].blake3
    assert result.stopped.startswith("3 models, one after the other")
    best = load_file(tmp_path / "best.safetensors")["w"]
    newest = load_file(tmp_path / "global.safetensors")["w"]
    assert (best[0], newest[0]) == (1, 5)

    home = ["--home", str(deployed.folder.path)]
    shown = _flare("run", "show", "demo", *home)
    assert "best model: the one that round 1 started from, loss 3\n" in shown
    assert f"ended early: {result.stopped}\n" in shown
    other = tmp_path / "other"
    assert "best.safetensors" not in _flare("run", "download", "demo", other, *home)
    told = _flare("run", "download", "demo", other, "--best", *home)
    assert f"{other / 'best.safetensors'}\n" in told
    deployed.stop()
    path = deployed.folder.runs / "demo" / "best.safetensors"
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))
    found = [str(one) for one in check_server(deployed.folder)]
    deployed.start()
    assert any(f"{path}: expected BLAKE3" in one for one in found)


def test_a_run_without_a_best_model_has_none_to_download(
    deployed: Deployment, tmp_path: Path
) -> None:
    deployed.create("demo", _PLAN)

    with (
        deployed.admin() as admin,
        pytest.raises(flare.RequestDeniedError, match="'demo' has no best model"),
    ):
        download(admin, "demo", tmp_path / "result", best=True)

    assert not (tmp_path / "result").exists()


def _flare(*words: str | Path) -> str:
    done = subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    return done.stdout


def test_a_best_model_outlives_the_server_and_so_does_the_patience(
    pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with deployment(process=True) as deployed, closing(_Game(deployed, pool)) as game:
        record = deployed.folder.runs / "demo"
        with deployed.admin() as admin:
            found = best_of(admin, "demo")
        deployed.kill()
        (record / "best.json").unlink()  # as if it had died a moment earlier
        (record / "best.safetensors").unlink()
        deployed.start()
        with deployed.admin() as admin:
            assert best_of(admin, "demo") == found

        info, result, records = _played(deployed, game, tmp_path)

        assert (info.state, info.rounds, result.best) == ("finished", 5, found)
        assert [one.global_metrics["loss"] for one in records] == _SCORES[:5]
        assert load_file(tmp_path / "best.safetensors")["w"][0] == 1


def test_a_best_model_that_is_gone_halts_the_run_until_it_is_put_back(
    game: _Game, deployed: Deployment, tmp_path: Path
) -> None:
    deployed.stop()
    (path,) = (deployed.folder.runs / "demo" / "spool" / "demo").glob("best-*")
    path.rename(tmp_path / path.name)
    deployed.start()
    info = deployed.info("demo")
    assert f"the best global model, that of round 1, {path}, is gone" in info.error

    (tmp_path / path.name).rename(path)
    deployed.stop()
    deployed.start()

    assert game.ended().state == "finished"
