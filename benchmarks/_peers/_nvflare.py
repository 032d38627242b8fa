"""NVIDIA FLARE: its simulator, or a provisioned server and clients on loopback.

The job is `nvflare_app/job.py`.  What was chosen, in its favour where there was a
choice: its recipe for FedAvg, which adds up each result as it comes; the Client API in
the client's own process, its default, which spares a copy to another one; memory
settings as its documentation recommends; no TLS in a deployment, as for the others; no
model is saved.  Its server is the process of the FedAvg controller; in a deployment
also the server's parent process.
"""

import json
import os
from pathlib import Path

from _peers import _environments
from _peers._job import Mode
from _peers._processes import free_port
from _peers._run import Run

_APP = Path(__file__).with_name("nvflare_app")
_SERVER = "localhost"
_ADMIN = "admin@nvidia.com"
_IMPL = "nvflare.lighter.impl"


def start(run: Run, environment: Path) -> None:
    """Start the run.

    Args:
        run: It; nothing of it has been started.
        environment: Folder of the environment that has NVIDIA FLARE.
    """
    python = _environments.python_of(environment)
    variables = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "MALLOC_ARENA_MAX": "4",  # for servers, by its guide to memory
    }
    options = [f"--folder={run.folder}", *run.job.options]
    command: list[str | Path] = [python, "job.py", *options]
    if run.job.mode is Mode.DEPLOYED:
        kits = _provision(run, python, variables)
        command.append(f"--kit={kits / _ADMIN}")
    run.start("job", command, variables=variables, cwd=_APP)


def _provision(run: Run, python: Path, variables: dict[str, str]) -> Path:
    """Provision a project, start its server and clients, and return their folder."""
    port = free_port()
    sites = [f"site-{index + 1}" for index in range(run.job.sites)]
    project = run.folder / "project.yml"
    project.write_text(json.dumps(_project(port, sites)))  # JSON is YAML
    run.call(
        "provision",
        [python.with_name("nvflare"), "provision", "-p", project, "-w", "kits"],
        variables,
    )
    kits = run.folder / "kits" / "peers" / "prod_00"
    resources = kits / _SERVER / "local" / "resources.json.default"
    text = resources.read_text().replace("/tmp/nvflare", str(run.folder))  # noqa: S108
    resources.with_name("resources.json").write_text(text)
    for name in (_SERVER, *sites):
        run.start(
            name,
            ["bash", kits / name / "startup" / "sub_start.sh", "--once"],
            variables=variables,
            server=name == _SERVER,
        )
        if name == _SERVER:
            run.wait_for_port(port)
    return kits


def _project(port: int, sites: list[str]) -> dict[str, object]:
    common = {"org": "nvidia", "connection_security": "clear"}
    server = {
        "name": _SERVER,
        "type": "server",
        "fed_learn_port": port,
        "admin_port": port,
        **common,
    }
    clients = [{"name": site, "type": "client", **common} for site in sites]
    admin = {"name": _ADMIN, "type": "admin", "role": "project_admin", **common}
    return {
        "api_version": 3,
        "name": "peers",
        "participants": [server, *clients, admin],
        "builders": [
            {"path": f"{_IMPL}.workspace.WorkspaceBuilder"},
            {
                "path": f"{_IMPL}.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "scheme": "grpc"},
            },
            {"path": f"{_IMPL}.cert.CertBuilder"},
            {"path": f"{_IMPL}.signature.SignatureBuilder"},
        ],
    }
