"""Ctrl-C and SIGTERM end everything."""

import signal
import subprocess
from pathlib import Path

import pytest

from simulated import COMMAND, NOTES_PIDS, TIMEOUT_S, WriteScript, left_alive

TRAINS_FOR_EVER = (
    NOTES_PIDS
    + """
with flare.join({"w": np.zeros(3)}) as run:
    for round in run:
        threading.Event().wait()
"""
)
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.mark.parametrize(
    ("body", "signum"),
    [
        (TRAINS_FOR_EVER, signal.SIGINT),
        (TRAINS_FOR_EVER, signal.SIGTERM),
        (STUBBORN + TRAINS_FOR_EVER, signal.SIGINT),
    ],
    ids=["ctrl-c", "terminated", "stubborn"],
)
def test_an_interrupt_leaves_no_process(
    script: WriteScript, tmp_path: Path, body: str, signum: signal.Signals
) -> None:
    with subprocess.Popen(
        [COMMAND, "simulate", script(body), "--sites", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        joined = 0
        while joined < 2:
            joined += " joined" in command.stdout.readline()

        command.send_signal(signum)
        _, errors = command.communicate(timeout=TIMEOUT_S)

    assert command.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert left_alive(tmp_path) == []


CLEANS_UP = """
def clean(*_):
    with Path(me.folder, f"{me.name}.signals").open("a") as file:
        file.write("t")
    threading.Event().wait(0.3)
    sys.exit(1)

signal.signal(signal.SIGTERM, clean)
"""


def test_a_site_that_cleans_up_is_told_once(
    script: WriteScript, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [COMMAND, "simulate", script(CLEANS_UP + TRAINS_FOR_EVER), "--sites", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        while " joined" not in command.stdout.readline():
            pass

        command.send_signal(signal.SIGINT)
        command.communicate(timeout=TIMEOUT_S)

    (told,) = tmp_path.rglob("*.signals")
    assert told.read_text() == "t"
