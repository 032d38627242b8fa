"""Packages that bring something along, as if they had been installed."""

from pathlib import Path
from typing import Protocol

import pytest


class Install(Protocol):
    """Installs a module with entry points."""

    def __call__(self, group: str, code: str, **names: str) -> None:
        """Install it.

        Args:
            group: The entry points' group.
            code: What the module says.
            names: What in it is offered, by the name it is offered under.
        """
        ...


def installer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what installs into a folder, until the test is over."""

    def install(group: str, code: str, **names: str) -> None:
        module = f"brought_along_by_{folder.name.replace('-', '_')}"
        package = folder / f"{module}-1.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\n")
        points = [f"{name} = {module}:{what}" for name, what in names.items()]
        lines = "\n".join([f"[{group}]", *points, ""])
        (package / "entry_points.txt").write_text(lines)
        (folder / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)

    return install
