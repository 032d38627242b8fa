"""A federation on one machine that goes well, and its record."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load_file

from flare_core import ConfigurationError, FedProx, Plan, site
from flare_core.application import Result, RoundRecord
from flare_core.management import plan_of, simulate
from simulated import LEARNS, Flare, WriteScript

DELAYED = """
rng = np.random.default_rng(me.index)
random.seed(f"{sys.argv[1]} {me.index}")  # other delays in each run
with flare.join({"weight": np.zeros(1000)}) as run:
    for round in run:
        weight = round.weights["weight"] + rng.normal(size=1000)
        time.sleep(random.uniform(0, 0.1))
        round.submit({"weight": weight}, num_examples=me.index + 1)
"""
THREE_ROUNDS = plan_of(None, sites=2, rounds=3)


def _rounds(folder: Path) -> list[RoundRecord]:
    lines = (folder / "rounds.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=RoundRecord) for line in lines]


def test_the_run_folder_has_the_whole_record(
    script: WriteScript, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    result = simulate(script(LEARNS), plan=THREE_ROUNDS, run_dir=folder)

    rounds = _rounds(folder)
    saved = msgspec.json.decode((folder / "result.json").read_bytes(), type=Result)
    digest = blake3((folder / "global.safetensors").read_bytes()).hexdigest()
    assert [record.round for record in rounds] == [0, 1, 2]
    assert rounds[0].num_examples == 30
    assert list(rounds[0].sites) == ["site-1", "site-2"]
    assert digest == rounds[-1].blake3 == result.blake3
    assert saved == result
    assert (folder / "manifest-site-2.jsonl").exists()


def test_the_sites_share_the_spool_of_their_server(
    script: WriteScript, tmp_path: Path
) -> None:
    large = LEARNS.replace("(2, 3)", "(200, 300)")
    assert large != LEARNS

    simulate(script(large), plan=THREE_ROUNDS, run_dir=tmp_path / "run")

    for name in ("site-1", "site-2"):
        found = site(tmp_path / "run" / f"{name}.toml")
        assert found.spool == str(tmp_path / "run" / "spool")


def test_the_global_model_is_the_weighted_mean(
    script: WriteScript, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    simulate(script(LEARNS), plan=THREE_ROUNDS, run_dir=folder)

    bias = load_file(folder / "global.safetensors")["bias"]
    step = (10 * 1 / 3 + 20 * 2 / 3) / 30
    np.testing.assert_allclose(bias, [3 * step, 3 * step], rtol=1e-12)


def test_a_recorded_plan_plays_the_same_run_again(
    script: WriteScript, tmp_path: Path
) -> None:
    first = simulate(script(LEARNS), plan=THREE_ROUNDS, run_dir=tmp_path / "one")

    again = plan_of(tmp_path / "one" / "plan.toml")
    second = simulate(script(LEARNS), plan=again, run_dir=tmp_path / "two")

    assert again == THREE_ROUNDS
    assert first.blake3 == second.blake3


def test_random_delays_at_the_sites_never_change_the_model(
    script: WriteScript, tmp_path: Path
) -> None:
    plan = plan_of(None, sites=4, rounds=3)

    results = [
        simulate(script(DELAYED), plan=plan, args=[name], run_dir=tmp_path / name)
        for name in "abc"
    ]

    assert len({result.blake3 for result in results}) == 1


def test_site_names_sort_like_their_indices_from_ten_sites_on(
    script: WriteScript, tmp_path: Path
) -> None:
    body = LEARNS.replace('{"loss": 0.5}', '{"index": me.index}')

    simulate(
        script(body), plan=plan_of(None, sites=10, rounds=1), run_dir=tmp_path / "r"
    )

    (record,) = _rounds(tmp_path / "r")
    in_order = [record.sites[site].metrics["index"] for site in sorted(record.sites)]
    assert in_order == list(range(10))
    assert "site-01" in record.sites


def test_a_folder_in_use_is_refused(script: WriteScript, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(ConfigurationError, match=r"found '.*' in it; name another"):
        simulate(script(LEARNS), plan=THREE_ROUNDS, run_dir=tmp_path)


def test_the_command_passes_what_follows_two_dashes_to_the_script(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    body = f"print(sys.argv[1:])\n{LEARNS}"

    done = flare("simulate", script(body), "--run-dir", "r", "--", "--lr", "0.1", "x")

    log = (tmp_path / "r" / "site-1.log").read_text()
    assert done.returncode == 0, done.stderr
    assert log == "['--lr', '0.1', 'x']\n"


def test_without_a_terminal_the_command_prints_a_line_per_event(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    done = flare("simulate", script(LEARNS), "--rounds", "2")

    lines = done.stdout.splitlines()
    (folder,) = (tmp_path / "runs").iterdir()
    assert any(line.startswith("site-2 joined: 2 tensors") for line in lines)
    assert any(line.startswith("round 1 played (2/2): loss 0.5") for line in lines)
    assert lines[-4].startswith("2 rounds in ")
    assert lines[-3].startswith("final model: accuracy ")
    assert lines[-1] == f"run folder {folder}"


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize(("wanted", "limit"), [("1", 1), ("9999", 9999), ("", 9999)])
def test_the_cores_are_shared_out_among_the_sites(
    script: WriteScript,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    sites: int,
    wanted: str,
    limit: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    body = f"print(os.environ['OMP_NUM_THREADS'])\n{LEARNS}"

    simulate(script(body), plan=plan_of(None, sites=sites), run_dir=tmp_path / "r")

    share = max(1, len(os.sched_getaffinity(0)) // sites)
    assert int((tmp_path / "r" / "site-1.log").read_text()) == min(share, limit)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("local.mu", "expected key=value"),
        ("strategy.moo=1", "unknown field `moo`"),
        ("nothing.mu=1", "a plan has no table 'nothing'"),
        ("local={name='fedprox', mu=-1}", "local.mu"),
        ("strategy.name=fedprox", "it belongs into the table [local]"),
        ("strategy.settings.mu=1", "strategy 'fedavg': "),
        ("strategy.name=fedsgd", "no flare_core.strategies plugin is called"),
        ("selection.quorum=9", "can never be met"),
        ("aggregation.name=krum", "needs at least 5 updates in each round"),
    ],
)
def test_the_command_explains_a_wrong_setting(
    flare: Flare, script: WriteScript, tmp_path: Path, setting: str, message: str
) -> None:
    done = flare("simulate", script(LEARNS), "--set", setting)

    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_options_win_over_the_plan_and_settings_over_options(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text('rounds = 7\n[selection]\nsites = 3\n[local]\nname = "fedprox"\n')

    plan = plan_of(file, rounds=8, settings=["selection.sites=4", "local.mu=0.1"])

    assert isinstance(plan, Plan)
    assert (plan.rounds, plan.selection.sites) == (8, 4)
    assert plan.local == FedProx(mu=0.1)


def test_words_in_braces_become_the_sites_own(
    flare: Flare, script: WriteScript, tmp_path: Path
) -> None:
    body = "Path(me.folder, f'{me.name}.args').write_text(' '.join(sys.argv[1:]))\n"
    words = ["{site}", "--part={index}/{count}", "{x}", "{}", "{{index}"]
    options = ["--sites", "2", "--rounds", "1", "--run-dir", "r", "--baselines"]

    done = flare("simulate", script(body + LEARNS), *options, "--", *words)

    assert done.returncode == 0, done.stderr
    found = {file.stem: file.read_text() for file in tmp_path.glob("r/*.args")}
    alone = (tmp_path / "r" / "local-only" / "site-2" / "site-2.args").read_text()
    everything = (tmp_path / "r" / "centralised" / "centralised.args").read_text()
    assert found["site-1"] == "site-1 --part=0/2 {x} {} {0"
    assert found["site-2"] == alone == "site-2 --part=1/2 {x} {} {1"
    assert everything == "centralised --part=0/1 {x} {} {0"
