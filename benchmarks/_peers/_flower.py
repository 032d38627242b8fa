"""Flower: `flwr run` on a SuperLink, which simulates, or has a SuperNode per site.

The app is `flower_app`.  What was chosen, in its favour where there was a choice: its
own FedAvg with no evaluation; in a simulation a core for each client, so that as many
train at once as the machine has cores (by default a client has two); no TLS; no
telemetry and no installing of dependencies.  Its server is, in a simulation, the
process that runs the ServerApp and the simulation engine; in a deployment the
ServerApp's and the SuperLink's, which keeps the messages.
"""

import os
from pathlib import Path

from _peers import _environments
from _peers._job import Mode
from _peers._processes import free_port
from _peers._run import Run

_APP = Path(__file__).with_name("flower_app")
_CONNECTION = """\
[superlink]
default = "peers"

[superlink.peers]
address = "{address}"
insecure = true
"""


def start(run: Run, environment: Path) -> None:
    """Start the run.

    Args:
        run: It; nothing of it has been started.
        environment: Folder of the environment that has Flower.
    """
    programs = _environments.python_of(environment).parent
    variables = _variables(run.folder, programs)
    simulated = run.job.mode is Mode.SIMULATED
    port = free_port()
    address = f"127.0.0.1:{port}"
    (run.folder / "config.toml").write_text(_CONNECTION.format(address=address))
    superlink: list[str | Path] = [
        *(programs / "flower-superlink", "--insecure", "--host=127.0.0.1"),
        *(f"--port={port}", "--disable-runtime-dependency-installation"),
        *(["--simulation"] if simulated else []),
    ]
    run.start("superlink", superlink, variables=variables, server=not simulated)
    run.wait_for_port(port)
    for index in range(0 if simulated else run.job.sites):
        supernode: list[str | Path] = [
            *(programs / "flower-supernode", "--insecure", f"--superlink={address}"),
            *("--host=127.0.0.1", f"--port={free_port()}"),
            f"--node-config=partition-id={index} num-partitions={run.job.sites}",
        ]
        run.start(f"supernode-{index}", supernode, variables=variables)
    settings = [f"{key}={value}" for key, value in run.job.settings.items()]
    command: list[str | Path] = [
        *(programs / "flwr", "run", _APP, "peers", "--stream"),
        *("--run-config", " ".join([f'folder="{run.folder}"', *settings])),
    ]
    if simulated:
        federation = f"num-supernodes={run.job.sites} client-resources-num-cpus=1"
        command += ["--federation-config", federation]
    run.start("run", command, variables=variables)


def _variables(folder: Path, programs: Path) -> dict[str, str]:
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        # Ray is the only one to ask for this machine's address in the network, and to
        # listen there; by this variable it takes 127.0.0.1, as on other systems.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
