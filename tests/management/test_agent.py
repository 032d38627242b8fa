"""A site's agent starts what the site itself has bound to a run, and nothing else."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agents import Deploy, Gate, StartAgent
from deployed import Deployment
from flare_core.application import audit_lines, verify_audit
from simulated import HEAD, LEARNS, Flare, left_alive
from site_scripts import plan

TRAINS = HEAD + LEARNS
WAITS = """\
import os, sys
from pathlib import Path

run = os.environ["FLARE_RUN"]
Path(run + ".gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
open(run + ".gate").read()
"""
FAILS = "raise SystemExit(3)\n"
ONE = '[runs."heart-*"]\ncommand = ["train.py"]\n'


def _site(deployment: Deployment, name: str, script: str, site_file: str = ONE) -> Path:
    home = deployment.member(name, site_file)
    (home / "train.py").write_text(script)
    return home


def _noted(home: Path, event: str) -> list[str]:
    """Return the lines of a site's audit log about an event."""
    lines = [line.decode() for line in audit_lines(home)]
    return [line for line in lines if f'"event":"{event}"' in line]


def test_two_sites_play_a_run_by_themselves(deploy: Deploy, agent: StartAgent) -> None:
    deployment = deploy()
    homes = [_site(deployment, name, TRAINS) for name in ("a", "b")]
    agents = [agent(home) for home in homes]

    deployment.create("heart-1", plan(sites=2, rounds=2))

    assert deployment.ended("heart-1").state == "finished"
    for home, one in zip(homes, agents, strict=True):
        started = one.until("heart-1: started")
        assert one.until("heart-1: ended with code 0")
        assert f"log {home}/runs/heart-1.log" in started
        assert (home / "runs" / "heart-1.log").exists()
        assert '"train.py"' in _noted(home, "command started")[0]
        assert '"code":0' in _noted(home, "command ended")[0]
        code, said = one.stop()
        assert code == 0
        assert said.count("started") == 1
        assert verify_audit(home).problems == ()


def test_a_run_that_nothing_is_bound_to_starts_nothing_until_something_is(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(deployment, "a", TRAINS, "")
    serving = agent(home)

    deployment.create("heart-1", plan(sites=1))

    said = serving.until("heart-1")
    assert "binds no command to it" in said
    assert '[runs."heart-1"]' in said
    assert len(_noted(home, "not bound")) == 1
    assert not (home / "runs").exists()
    with (home / "site.toml").open("a") as site_file:
        site_file.write(ONE)
    assert serving.until("heart-1: started")
    assert deployment.ended("heart-1").state == "finished"


def test_a_run_that_the_policy_does_not_allow_is_not_started(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    policy = '[policy]\nruns = ["lung-*"]\n'
    home = _site(deployment, "a", TRAINS, policy + ONE)
    serving = agent(home)

    deployment.create("heart-1", plan(sites=1))

    assert "policy.runs" in serving.until("heart-1: is not started")
    (noted,) = _noted(home, "policy")
    assert '"run":"heart-1"' in noted
    assert '"rule":"policy.runs"' in noted
    _, said = serving.stop()
    assert "heart-1: started" not in said
    assert not _noted(home, "command started")


def test_one_run_at_a_time_if_the_site_says_so(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(deployment, "a", WAITS)
    first, second = (Gate(home / f"heart-{number}.gate") for number in (1, 2))
    deployment.create("heart-1", plan(sites=1))
    deployment.create("heart-2", plan(sites=1))
    serving = agent(home)

    assert serving.until("heart-1: started")
    assert serving.until("heart-2: waits for a free slot")
    first.open()
    assert serving.until("heart-1: ended")
    assert serving.until("heart-2: started")
    second.open()
    assert serving.until("heart-2: ended")


def test_each_command_sees_the_gpus_that_it_was_given(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    site_file = (
        '[resources]\ngpus = ["3", "5"]\nconcurrent_runs = 3\n'
        '[runs.none]\ncommand = ["train.py"]\n'
        '[runs."one-*"]\ncommand = ["train.py"]\ngpus = 1\n'
    )
    home = _site(deployment, "a", WAITS, site_file)
    gates = {run: Gate(home / f"{run}.gate") for run in ("one-1", "none", "one-2")}
    for run in gates:
        deployment.create(run, plan(sites=1))
    serving = agent(home)

    for _ in gates:
        serving.until(": started")
    for run, gate in gates.items():
        gate.open()
        serving.until(f"{run}: ended with code 0")

    seen = {path.stem: path.read_text() for path in home.glob("*.gpus")}
    assert seen == {"one-1": "3", "none": "", "one-2": "5"}


def test_gpus_that_were_not_declared_are_not_hidden(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    more = ONE + 'environment = {CUDA_VISIBLE_DEVICES = "7"}\n'
    home = _site(deployment, "a", WAITS, more)
    gate = Gate(home / "heart-1.gate")
    deployment.create("heart-1", plan(sites=1))
    serving = agent(home)

    gate.open()
    serving.until(": ended with code 0")

    assert (home / "heart-1.gpus").read_text() == "7"


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_command_that_failed_is_started_again_as_often_as_it_may(
    deploy: Deploy, agent: StartAgent, restarts: int
) -> None:
    deployment = deploy()
    home = _site(deployment, "a", FAILS, f"{ONE}restarts = {restarts}\n")
    serving = agent(home)

    deployment.create("heart-1", plan(sites=1))

    given_up = serving.until("is not started again")
    assert "its command ended with code 3" in given_up
    assert f"restarts is {restarts}" in given_up
    started = [line for line in serving.lines if "heart-1: started" in line]
    assert len(started) == 1 + restarts
    assert len(_noted(home, "command started")) == 1 + restarts


def test_a_command_that_cannot_be_started_is_named_and_tried_again_once_changed(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(
        deployment, "a", TRAINS, '[runs.heart-1]\ncommand = ["no-such-program"]\n'
    )
    serving = agent(home)

    deployment.create("heart-1", plan(sites=1))

    said = serving.until("cannot start no-such-program")
    assert 'runs."heart-1"' in said
    site_file = home / "site.toml"
    site_file.write_text(site_file.read_text().replace("no-such-program", "train.py"))
    assert serving.until("heart-1: started")
    assert deployment.ended("heart-1").state == "finished"


def test_a_site_file_that_broke_starts_nothing_until_it_is_mended(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(deployment, "a", TRAINS)
    serving = agent(home)
    serving.until("is connected")
    site_file = home / "site.toml"
    whole = site_file.read_text()
    site_file.write_text(whole + "comand = []\n")

    deployment.create("heart-1", plan(sites=1))

    said = serving.until("nothing is started")
    assert 'runs."heart-*": Object contains unknown field `comand`' in said
    assert str(site_file) in said
    site_file.write_text(whole)
    assert serving.until("heart-1: started")
    assert deployment.ended("heart-1").state == "finished"


def test_what_cannot_be_audited_is_not_started(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(deployment, "a", TRAINS)
    in_the_way = home / "audit.jsonl"
    in_the_way.mkdir()
    serving = agent(home)

    deployment.create("heart-1", plan(sites=1))

    assert str(in_the_way) in serving.until("heart-1: is not started")
    in_the_way.rmdir()
    assert serving.until("heart-1: started")
    assert deployment.ended("heart-1").state == "finished"


def test_a_run_that_is_stopped_awaits_nobody(deploy: Deploy, agent: StartAgent) -> None:
    deployment = deploy()
    serving = agent(_site(deployment, "a", TRAINS, ""))
    deployment.create("heart-1", plan(sites=1))
    serving.until("binds no command")

    deployment.end("heart-1")

    assert serving.until("heart-1: awaits this site no more")


def test_the_name_of_a_run_can_be_no_path(deploy: Deploy, agent: StartAgent) -> None:
    deployment = deploy()
    home = _site(deployment, "a", TRAINS, '[runs."*"]\ncommand = ["train.py"]\n')
    deployment.create("heart-1", plan(sites=2))
    deployment.stop()
    with closing(sqlite3.connect(deployment.folder.store)) as store, store:
        store.execute("UPDATE runs SET name = '../../evil'")
    deployment.start()

    code, said = agent(home).ends()

    assert code == 1
    assert "the server's answer makes no sense" in said
    assert "started" not in said
    assert not (home / "audit.jsonl").exists()


def test_what_is_no_site_has_no_agent(deploy: Deploy, agent: StartAgent) -> None:
    home = deploy().member("rita", role="researcher")

    code, said = agent(home).ends()

    assert code == 1
    assert "'rita' is a researcher, and may not take part in runs" in said


def test_a_site_has_one_agent(deploy: Deploy, agent: StartAgent) -> None:
    home = _site(deploy(), "a", TRAINS)
    agent(home).until("is connected")

    code, said = agent(home).ends()

    assert code == 1
    assert "agent.lock: expected no other agent of this site" in said


def test_a_site_file_is_shown_as_it_is_understood(flare: Flare, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "a"\n[policy]\nruns = ["heart-*", "!heart-0"]\n'
        '[resources]\ngpus = ["0", "1"]\n'
        '[runs."heart-*"]\ncommand = ["torchrun", "my train.py"]\ngpus = 2\n'
        'folder = "work"\nenvironment = {DATA = "/data"}\n'
    )

    done = flare("site", "check")

    assert done.returncode == 0, done.stderr
    for line in (
        "site a, server none",
        "  runs: heart-*, !heart-0",
        "  plans: all",
        "  gpus: 0, 1",
        "  concurrent_runs: 1",
        '[runs."heart-*"]',
        "  command: torchrun 'my train.py'",
        f"  folder: {tmp_path}/work  (there is no such folder)",
        "  environment: DATA",
    ):
        assert line in done.stdout.splitlines()


def test_a_site_file_that_is_wrong_fails_the_check(
    flare: Flare, tmp_path: Path
) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "a"\n[runs.x]\ncommand = ["train.py"]\ngpus = 1\n'
    )

    done = flare("site", "check")

    assert done.returncode == 1
    assert 'runs."x".gpus: expected at most 0' in done.stderr


def test_what_a_command_leaves_behind_is_ended_with_it(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    leaves = (
        "import subprocess\nfrom pathlib import Path\n"
        'child = subprocess.Popen(["sleep", "600"], start_new_session=True)\n'
        'Path("left.pids").write_text(str(child.pid))\n'
    )
    home = _site(deployment, "a", leaves)
    serving = agent(home)

    deployment.create("heart-1", plan(sites=1))

    serving.until("heart-1: ended with code 0")
    assert left_alive(home) == []
