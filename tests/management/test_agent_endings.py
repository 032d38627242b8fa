"""What ends an agent leaves no process; what does not, it waits for."""

import signal
from pathlib import Path

import pytest

from agents import Deploy, StartAgent
from deployed import Deployment
from flare_core.management._enrolment import rotate_key
from simulated import HEAD, NOTES_PIDS, left_alive
from site_scripts import plan

BINDING = '[runs."*"]\ncommand = ["train.py"]\n'
TRAINS_FOR_EVER = (
    HEAD
    + NOTES_PIDS
    + """
with flare.join({"w": np.zeros(3)}) as run:
    for round in run:
        threading.Event().wait()
"""
)
STUBBORN = TRAINS_FOR_EVER.replace(
    "child =", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nchild ="
)


def _site(deployment: Deployment, script: str = TRAINS_FOR_EVER) -> Path:
    home = deployment.member("a", BINDING)
    (home / "train.py").write_text(script)
    return home


def _joined(deployment: Deployment, run: str) -> None:
    deployment.create(run, plan(sites=1))
    deployment.said(run, " joined")


@pytest.mark.parametrize(
    ("script", "signum"),
    [
        (TRAINS_FOR_EVER, signal.SIGTERM),
        (TRAINS_FOR_EVER, signal.SIGINT),
        (STUBBORN, signal.SIGTERM),
    ],
    ids=["terminated", "ctrl-c", "stubborn"],
)
def test_a_signal_leaves_no_process(
    deploy: Deploy, agent: StartAgent, script: str, signum: signal.Signals
) -> None:
    deployment = deploy()
    home = _site(deployment, script)
    serving = agent(home)
    _joined(deployment, "heart-1")

    code, said = serving.stop(signum)

    assert code == 0
    assert "ending heart-1" in said
    assert "heart-1: was killed by" in said
    assert "Traceback" not in said
    assert left_alive(home) == []


def test_a_revoked_key_ends_the_agent_and_what_it_started(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(deployment)
    serving = agent(home)
    _joined(deployment, "heart-1")

    deployment.revoke("a")

    code, said = serving.ends()
    assert code == 1
    assert "does not let 'a' in: its key was revoked" in said
    assert left_alive(home) == []


def test_a_lost_server_is_waited_for_and_said_once(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy()
    home = _site(deployment, "raise SystemExit\n")
    deployment.stop()
    serving = agent(home)
    serving.until("no server answers")
    deployment.start()
    serving.until("is connected")
    deployment.stop()
    serving.until("no server answers")
    deployment.start()
    serving.until("is connected")

    deployment.create("heart-1", plan(sites=1))

    assert serving.until("heart-1: started")
    lost = [line for line in serving.lines if "no server answers" in line]
    assert len(lost) == 2


def test_an_agent_goes_on_with_a_key_that_was_changed(
    deploy: Deploy, agent: StartAgent
) -> None:
    deployment = deploy(old_key_s=0.001)
    home = _site(deployment, "raise SystemExit\n")
    serving = agent(home)
    serving.until("is connected")

    rotate_key(home)
    deployment.stop()
    deployment.start()

    serving.until("is connected")
    deployment.create("heart-1", plan(sites=1))
    assert serving.until("heart-1: started")
