"""The peers' environments: one each, of exact versions from the package registry."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from _peers._job import RunFailedError

NVFLARE = ("nvflare==2.9.0", "numpy==2.4.6")
FLOWER = ("flwr[simulation]==1.42.0", "ray==2.55.1", "numpy==2.4.6")
_MARK = "complete"


def default_folder() -> Path:
    """Return where environments are kept for the next time."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "flare-benchmarks"


def is_ready(folder: Path, requirements: tuple[str, ...]) -> bool:
    """Return whether an environment was completed, with these very requirements."""
    mark = folder / _MARK
    return mark.exists() and mark.read_text() == _mark_of(requirements)


def create(folder: Path, requirements: tuple[str, ...]) -> None:
    """Create an environment and install the requirements into it.

    Raises:
        RunFailedError: If pip could not.
    """
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet"]
    done = subprocess.run(
        [*pip, *requirements], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        words = ["no reason given", *done.stderr.strip().splitlines()]
        msg = f"pip could not install {', '.join(requirements)}: {words[-1]}"
        raise RunFailedError(msg)
    (folder / _MARK).write_text(_mark_of(requirements))


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "bin" / "python"


def _mark_of(requirements: tuple[str, ...]) -> str:
    return "\n".join([sys.version, *requirements, ""])
