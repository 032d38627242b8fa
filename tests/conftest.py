"""Fixtures for all tests: a real server, and site files that lead to it."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import tomli_w
from hypothesis import settings

from flare_core import Plan, Site
from flare_core.application import Observer
from packages import Install, installer
from support import PATIENCE_S, RunningServer, RunServer, SiteFile

settings.register_profile("patient", deadline=None)  # the machine may be busy
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _outside_a_federation(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the federation of the shell that started it."""
    monkeypatch.delenv("FLARE_ADAPT", raising=False)
    monkeypatch.delenv("FLARE_SITE", raising=False)
    monkeypatch.delenv("FLARE_RUN", raising=False)


@pytest.fixture
def run_server() -> Iterator[RunServer]:
    """Start servers that are closed when the test ends."""
    with ExitStack() as running:

        def run(
            plan: Plan,
            *,
            observer: Observer = lambda _: None,
            preflight: bool = False,
            folder: Path | None = None,
            patience_s: float = PATIENCE_S,
            num_threads: int | None = None,
            share_spool: bool = False,
            above: Site | None = None,
        ) -> RunningServer:
            server = RunningServer(
                plan,
                observer=observer,
                preflight=preflight,
                folder=folder,
                patience_s=patience_s,
                num_threads=num_threads,
                share_spool=share_spool,
                above=above,
            )
            return running.enter_context(closing(server))

        yield run


@pytest.fixture
def site_file(tmp_path: Path) -> SiteFile:
    """Write site files."""

    def write(
        name: str,
        endpoint: str,
        index: int = 0,
        count: int = 1,
        *,
        patience_s: float = PATIENCE_S,
        spool: Path | None = None,
    ) -> Path:
        settings = {
            "name": name,
            "server": endpoint,
            "index": index,
            "count": count,
            "patience_s": patience_s,
            "spool": str(spool or ""),
        }
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(settings), encoding="utf-8")
        return path

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package that brings something along, until the test is over."""
    folder = tmp_path / tmp_path.name
    folder.mkdir()
    return installer(folder, monkeypatch)
