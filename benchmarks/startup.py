"""How long simulated sites take to join, and their memory, with imports shared or not.

    python benchmarks/startup.py --json startup.json
    python benchmarks/startup.py --quick

Each site imports what a script of its framework does, joins, and waits.  Once all have
joined, their memory is what each holds alone and its part of what it shares (``Pss`` in
Linux); that of the process that they were forked from is divided among them.

"apart" is the same script with a statement before its imports: then each site makes
them for itself.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from _report import JsonFile, Quick, Report

_IMPORTS = {
    "NumPy": "import numpy as np\n",
    "Lightning": "import torch, lightning.pytorch\n",
    "Hugging Face": "import torch, peft\nfrom transformers import Trainer\n",
    "MONAI": "import torch\nfrom monai.engines import SupervisedTrainer\n",
}
_JOINS = """\
import threading
import numpy as np
import flare_core

with flare_core.join({"w": np.zeros(3)}):
    threading.Event().wait()
"""
_QUICK = {"NumPy", "Lightning"}
_COMMAND = Path(sys.executable).with_name("flare")
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def main(json_file: JsonFile = None, *, quick: Quick = False) -> None:
    """Print how long sites take to join, and their memory."""
    report = Report("startup")
    for framework, imports in _IMPORTS.items():
        if quick and framework not in _QUICK:
            continue
        for num_sites in [4] if quick else [4, 32]:
            for how, before in (("shared", ""), ("apart", "pass\n")):
                case = f"{framework}, {num_sites} sites, imports {how}"
                with _joined(before + imports + _JOINS, num_sites) as (pid, seconds):
                    megabytes = sum(map(_pss_mb, _below(pid))) / num_sites
                    report.add(f"{case}: until all have joined", "s", [seconds])
                    report.add(f"{case}: memory of a site", "MB", [megabytes])
    report.finish(json_file)


@contextmanager
def _joined(script: str, num_sites: int) -> Iterator[tuple[int, float]]:
    """Simulate sites; yield who does, and the seconds it took until all had joined."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(script)
        began = time.perf_counter()
        with subprocess.Popen(
            [_COMMAND, "simulate", "train.py", "--sites", str(num_sites)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # that it was interrupted
            text=True,
        ) as command:
            try:
                _wait_until_joined(command.stdout or [], num_sites)
                yield command.pid, time.perf_counter() - began
            finally:
                command.terminate()


def _wait_until_joined(lines: Iterable[str], num_sites: int) -> None:
    joined = 0
    for line in lines:
        joined += " joined" in line
        if joined == num_sites:
            return
    msg = f"the simulation ended when {joined} of {num_sites} sites had joined"
    raise RuntimeError(msg)


def _below(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those they have."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    below = [pid]
    while below:
        children = parents.get(below.pop(), [])
        below += children
        yield from children


def _pss_mb(pid: int) -> float:
    """Return the memory of a process, its part of what it shares included."""
    found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 0.0 if found is None else int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    typer.run(main)
