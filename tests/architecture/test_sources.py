"""Rules about files that no linter knows."""

from pathlib import Path

import pytest

import flare_adapters
import flare_core
from inspection import imports_of, sources

CORE = Path(flare_core.__file__).parent
PACKAGES = [*sources(CORE), *sources(Path(flare_adapters.__file__).parent)]
TESTS = sources(Path(__file__).parents[1])
LINES_LIMIT = 400
UNSAFE = ["cloudpickle", "dill", "marshal", "pickle", "shelve"]


def _imports(source: Path, module: str) -> bool:
    return any(
        name == module or name.startswith(f"{module}.") for name in imports_of(source)
    )


def test_the_sources_are_found() -> None:
    assert CORE / "__init__.py" in PACKAGES
    assert Path(__file__) in TESTS


def test_zmq_is_imported_in_one_folder() -> None:
    importers = [path for path in PACKAGES if _imports(path, "zmq")]

    assert {path.parent for path in importers} == {CORE / "communication" / "_zmq"}


@pytest.mark.parametrize("module", UNSAFE)
def test_nothing_that_runs_what_it_reads_is_imported(module: str) -> None:
    assert not [path for path in PACKAGES if _imports(path, module)]


def test_nothing_is_mocked() -> None:
    sources_of_ours = [*PACKAGES, *TESTS]

    assert not [path for path in sources_of_ours if _imports(path, "unittest.mock")]


def test_no_file_is_too_long_to_read() -> None:
    lengths = {
        str(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGES
    }

    assert not {path: n for path, n in lengths.items() if n > LINES_LIMIT}
