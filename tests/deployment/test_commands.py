"""The commands, where something is not as they, or who types them, expect."""

import signal
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deployed import Deployment
from simulated import COMMAND
from site_scripts import WAIT_S, add, plan, play


def _flare(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def test_who_stops_to_watch_a_run_is_not_told_that_it_has_ended(
    deployed: Deployment,
) -> None:
    deployed.create("demo", plan())
    with subprocess.Popen(
        [COMMAND, "run", "watch", "demo", "--home", deployed.folder.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert "server listens at" in command.stdout.readline()

        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=WAIT_S)

    assert command.returncode == 130
    assert errors == "interrupted\n"
    assert deployed.info("demo").state == "waiting"


def test_an_invitation_is_for_its_holder_only_where_a_file_was_before(
    deployed: Deployment,
) -> None:
    out = deployed.path / "a.invitation"
    out.write_text("an old one, for all to read")
    out.chmod(0o644)

    done = _flare("invite", "a", "--out", out, "--home", deployed.folder.path)

    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_nothing_is_trained_as_a_server(deployed: Deployment) -> None:
    done = _flare("run", "--home", deployed.folder.path, "train.py")

    assert done.returncode == 1
    assert "expected a site's folder, got a server's" in done.stderr


def test_a_run_that_is_none_is_downloaded_nowhere(deployed: Deployment) -> None:
    target = deployed.path / "result"

    done = _flare("run", "download", "demo", target, "--home", deployed.folder.path)

    assert done.returncode == 1
    assert "no run is called 'demo'" in done.stderr
    assert not target.exists()


def test_a_run_is_shown_with_what_its_lora_weights_lost(
    deployed: Deployment, pool: ThreadPoolExecutor
) -> None:
    factors = {"q.lora_A.weight": np.eye(2, 6), "q.lora_B.weight": np.eye(5, 2)}
    deployed.create("demo", plan(rounds=1))
    for name in ("a", "b"):
        deployed.member(name)
    sites = [
        pool.submit(play, deployed.site(name, "demo"), factors, add(step))
        for name, step in (("a", 1), ("b", 2))
    ]
    for site in sites:
        site.result(WAIT_S)
    deployed.ended("demo")

    done = _flare("run", "show", "demo", "--home", deployed.folder.path)

    assert done.returncode == 0, done.stderr
    assert "\n  LoRA by product: off by 0.0" in done.stdout
    assert "most in q (0.0" in done.stdout
