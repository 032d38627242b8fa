"""What the federation was worth, measured with the very same script."""

from pathlib import Path

import msgspec
import pytest

from flare_core import Plain, Plan
from simulated import LEARNS, Flare, WriteScript


def test_compares_with_each_site_alone_and_all_data_together(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    body = LEARNS.replace(
        "(me.index + 1) / 3", "1 if me.count == 1 else (me.index + 1) / 4"
    )

    done = flare(
        "simulate", script(body), "--rounds", "2", "--run-dir", "r", "--baselines"
    )

    folder = tmp_path / "r"
    found = msgspec.json.decode((folder / "scores.json").read_bytes())
    assert done.returncode == 0, done.stderr
    assert found["metrics"]["accuracy"] == {
        "local_only": pytest.approx((0.5 + 1.0) / 2),
        "federated": pytest.approx(2 * (0.25 * 10 + 0.5 * 20) / 30),
        "centralised": pytest.approx(2.0),
    }
    assert set(found["seconds"]) == {"local_only", "federated", "centralised"}
    assert "0.5  1" in done.stdout
    for inner in ("local-only/site-2", "centralised"):
        assert (folder / inner / "global.safetensors").exists()


def test_the_baselines_play_the_schedule_for_one_site_without_a_pull(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    settings = [
        "schedule.every_n_steps=7",
        "local.name=fedprox",
        "selection.quorum=1",
    ]
    options = [part for setting in settings for part in ("--set", setting)]

    flare("simulate", script(LEARNS), *options, "--run-dir", "r", "--baselines")

    text = (tmp_path / "r" / "local-only" / "site-1" / "plan.toml").read_bytes()
    plan = msgspec.toml.decode(text, type=Plan)
    assert plan.schedule.every_n_steps == 7
    assert plan.selection.sites == 1
    assert plan.local == Plain()


def test_a_site_that_fails_alone_ends_all_baselines(
    flare: Flare, script: WriteScript
) -> None:
    body = """
if "local-only" in me.folder:
    if me.index == 1:
        raise OSError("odd")
    threading.Event().wait()
"""

    done = flare("simulate", script(body + LEARNS), "--baselines")

    assert done.returncode == 1
    assert done.stderr.count("OSError: odd") == 1
