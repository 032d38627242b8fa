"""What a simulation prints and keeps of its cohorts and of its best model."""

from pathlib import Path

import msgspec
from blake3 import blake3
from safetensors.numpy import load_file

from flare_core.application import Best, Result
from simulated import Flare, WriteScript

SCORES = """\
scores = [0.5, 0.3, 0.4, 0.6, 0.7, 0.8]
with flare.join({"w": np.zeros(3)}) as run:
    for round in run:
        told = {"loss": scores[round.number]}
        w = round.weights["w"] + 1
        round.submit({"w": w}, num_examples=1, global_metrics=told)
    run.report({"loss": scores[int(run.weights["w"][0])]})
"""
_OPTIONS = [
    *("--sites", "3", "--rounds", "6", "--run-dir", "run"),
    *("--set", "selection.k=1", "--set", "selection.choose=round_robin"),
    *("--set", "stop.patience=2", "--set", "stop.metric=loss"),
]


def test_a_simulation_shows_its_cohorts_and_keeps_its_best_model(
    script: WriteScript, flare: Flare, tmp_path: Path
) -> None:
    done = flare("simulate", script(SCORES), *_OPTIONS)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    why = "2 models, one after the other, were not better than the best loss, 0.3"
    assert f"ended early: {why}" in lines
    assert f"ends after 4 rounds: {why}" in lines
    assert "best model: the one that round 1 started from, loss 0.3" in lines
    assert any("round 1 played (2/6): 1 of 3 sites (site-2)" in one for one in lines)

    folder = tmp_path / "run"
    result = msgspec.json.decode((folder / "result.json").read_bytes(), type=Result)
    best = msgspec.json.decode((folder / "best.json").read_bytes(), type=Best)
    assert result.best == best
    assert (result.rounds, result.stopped) == (4, why)
    path = folder / "best.safetensors"
    assert blake3(path.read_bytes()).hexdigest() == best.blake3
    assert load_file(path)["w"].tolist() == [1, 1, 1]
    assert load_file(folder / "global.safetensors")["w"].tolist() == [4, 4, 4]


def test_the_final_model_may_be_the_best(
    script: WriteScript, flare: Flare, tmp_path: Path
) -> None:
    done = flare(
        *("simulate", script(SCORES), "--rounds", "1", "--run-dir", "run"),
        *("--set", "stop.metric=loss"),
    )

    assert done.returncode == 0, done.stderr
    assert "best model: the final model, loss 0.3" in done.stdout.splitlines()
    folder = tmp_path / "run"
    best, newest = (folder / f"{one}.safetensors" for one in ("best", "global"))
    assert best.read_bytes() == newest.read_bytes()
