"""This library: `flare simulate`, or a server and sites as processes of their own.

It is the `flare_core` of the interpreter that runs the benchmark.  Its server is the
process of the command, or that of `ours_app/server.py`.
"""

import sys
from pathlib import Path

from _peers._job import Mode
from _peers._run import Run

_APP = Path(__file__).with_name("ours_app")


def start(run: Run, environment: Path) -> None:
    """Start the run.

    Args:
        run: It; nothing of it has been started.
        environment: Not used: there is none but the interpreter's.
    """
    del environment
    options = [f"--folder={run.folder}", *run.job.options]
    if run.job.mode is Mode.SIMULATED:
        command: list[str | Path] = [
            *(Path(sys.executable).with_name("flare"), "simulate", _APP / "site.py"),
            f"--sites={run.job.sites}",
            f"--rounds={run.job.rounds}",
            f"--run-dir={run.folder / 'run'}",
        ]
        run.start("simulate", [*command, "--", *options], server=True)
        return
    run.start("server", [sys.executable, _APP / "server.py", *options], server=True)
    endpoint = run.wait_for_file(run.folder / "endpoint")
    for index in range(run.job.sites):
        name = f"site-{index}"
        site_file = run.folder / f"{name}.toml"
        site_file.write_text(
            f'name = "{name}"\nserver = "{endpoint}"\nindex = {index}\n'
        )
        run.start(
            name,
            [sys.executable, _APP / "site.py", *options],
            variables={"FLARE_SITE": str(site_file)},
        )
