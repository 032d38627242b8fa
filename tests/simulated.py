"""What tests of simulations share: scripts of a site, the command, living processes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

WriteScript: TypeAlias = Callable[[str], Path]
"""Writes a site's script, from the body of its `main` on, and returns its path."""
Flare: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command to its end, in the test's folder."""

COMMAND = Path(sys.executable).with_name("flare")
TIMEOUT_S = 60

HEAD = """\
import os, random, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy as np
import flare_core as flare

me = flare.site() if "FLARE_SITE" in os.environ else None

"""
LEARNS = """\
with flare.join({"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2)}) as run:
    for round in run:
        step = (me.index + 1) / 3
        new = {name: array + step for name, array in round.weights.items()}
        round.submit(new, num_examples=10 * (me.index + 1), metrics={"loss": 0.5})
    run.report({"accuracy": float(run.weights["bias"].mean())})
"""
NOTES_PIDS = """\
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
Path(me.folder, f"{me.name}.pids").write_text(f"{os.getpid()} {child.pid}")
"""


def left_alive(folder: Path) -> list[int]:
    """Return the processes noted in a folder that still live.

    Raises:
        ValueError: If none was noted: then nothing would be proved.
    """
    files = list(folder.rglob("*.pids"))
    if not files:
        msg = f"no process was noted in {folder}"
        raise ValueError(msg)
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    return [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
