"""``flare replay`` of a simulation and of a run on a real server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from deployed import deployment
from simulated import LEARNS, Flare, WriteScript
from site_scripts import WAIT_S, add, model, plan, play

_TWO_ROUNDS = ("--rounds", "2", "--sites", "2", "--run-dir", "run")


def _update(folder: Path, site: str) -> Path:
    """Return the file of a site's update in round 1."""
    lines = (folder / "kept.jsonl").read_bytes().splitlines()
    entries = [msgspec.json.decode(line) for line in lines]
    (found,) = [e for e in entries if (e.get("site"), e["round"]) == (site, 1)]
    return folder / "kept" / str(found["blake3"])


def test_a_simulation_is_derived_again_and_what_was_changed_is_named(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    keeps = ("--set", "keep_updates=true")
    assert flare("simulate", script(LEARNS), *_TWO_ROUNDS, *keeps).returncode == 0

    good = flare("replay", "run")
    _update(tmp_path / "run", "site-2").write_bytes(b"other")
    bad = flare("replay", "run")

    assert good.returncode == 0, good.stderr
    rounds = good.stdout.splitlines()
    assert rounds[0].startswith("round 0: 2 updates  blake3 ")
    assert rounds[0].endswith("  as on record")
    assert rounds[2] == "2 rounds derived again, bit for bit"
    assert bad.returncode == 1
    assert bad.stdout.splitlines() == [
        rounds[0],
        "round 1: 2 updates  parts from the record",
    ]
    assert "round 1: site 'site-2': its update run/kept/" in bad.stderr
    assert bad.stderr.endswith("it parts from the record at round 1\n")


def test_models_of_stale_updates_are_derived_again(
    flare: Flare, script: WriteScript
) -> None:
    settings = ("keep_updates=true", "topology.name=async", "topology.buffer=1")
    options = [word for one in settings for word in ("--set", one)]
    options += ["--rounds", "12", "--sites", "3", "--run-dir", "run"]
    assert flare("simulate", script(LEARNS), *options).returncode == 0

    done = flare("replay", "run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("12 rounds derived again, bit for bit\n")


def test_a_run_of_a_server_is_derived_again_while_it_runs(flare: Flare) -> None:
    keeps = msgspec.structs.replace(plan(rounds=2), keep_updates=True)
    with ThreadPoolExecutor() as pool, deployment() as deployed:
        for name in "ab":
            deployed.member(name)
        deployed.create("lung", keeps)
        sites = [
            pool.submit(play, deployed.site(name, "lung"), model(0), add(step))
            for step, name in enumerate("ab")
        ]
        for site in sites:
            site.result(WAIT_S)
        deployed.ended("lung")

        done = flare("replay", deployed.folder.runs / "lung")

    assert done.returncode == 0, done.stderr
    assert "2 rounds derived again, bit for bit" in done.stdout


def test_a_run_that_kept_nothing_is_told_so(flare: Flare, script: WriteScript) -> None:
    assert flare("simulate", script(LEARNS), *_TWO_ROUNDS).returncode == 0

    done = flare("replay", "run")

    assert done.returncode == 1
    assert "run/plan.toml does not say keep_updates = true: no up" in done.stderr


def test_a_folder_of_no_run_is_named(flare: Flare) -> None:
    done = flare("replay", "nowhere")

    assert done.returncode == 1
    assert "nowhere is not the folder of a run: there is no plan.toml" in done.stderr
    assert "--plan" not in done.stderr  # which is for those who begin a run
    assert "Traceback" not in done.stderr
