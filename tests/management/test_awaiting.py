"""A site hears which runs await it, as soon as that changes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from agents import Deploy
from flare_core.communication import AwaitRuns
from flare_core.management._account import account_of
from simulated import HEAD, LEARNS, TIMEOUT_S
from site_scripts import plan

QUIET_S = 10 * TIMEOUT_S
"""A server so patient says that there is nothing new long after the test is over."""


def _start(home: Path) -> subprocess.Popen[bytes]:
    script = home / "train.py"
    script.write_text(HEAD + LEARNS)
    return subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "FLARE_SITE": str(home / "site.toml")},
        stderr=subprocess.DEVNULL,
    )


def test_a_run_awaits_a_site_until_it_has_joined_and_again_once_it_has_left(
    deploy: Deploy,
) -> None:
    deployment = deploy(patience_s=QUIET_S)
    home = deployment.member("a")

    with account_of(home).control() as control:
        assert control.ask(AwaitRuns(), list[str]) == []
        control.send(AwaitRuns(known=[]))
        deployment.create("heart-1", plan(sites=2))
        assert control.receive(list[str], timeout_s=TIMEOUT_S) == ["heart-1"]

        control.send(AwaitRuns(known=["heart-1"]))
        site = _start(home)
        assert control.receive(list[str], timeout_s=TIMEOUT_S) == []

        control.send(AwaitRuns(known=[]))
        site.send_signal(signal.SIGINT)
        site.wait(TIMEOUT_S)
        assert control.receive(list[str], timeout_s=TIMEOUT_S) == ["heart-1"]

        control.send(AwaitRuns(known=["heart-1"]))
        deployment.end("heart-1")
        assert control.receive(list[str], timeout_s=TIMEOUT_S) == []


def test_a_run_that_has_begun_awaits_nobody(deploy: Deploy) -> None:
    deployment = deploy(patience_s=QUIET_S)
    home, other = deployment.member("a"), deployment.member("b")
    deployment.create("heart-1", plan(sites=1))

    with account_of(other).control() as control:
        assert control.ask(AwaitRuns(), list[str]) == ["heart-1"]
        control.send(AwaitRuns(known=["heart-1"]))
        site = _start(home)
        assert control.receive(list[str], timeout_s=TIMEOUT_S) == []
        assert site.wait(TIMEOUT_S) == 0
