"""Rules about files that no linter knows."""

import re
from pathlib import Path

import pytest

import flare_adapters
import flare_core
from inspection import imports_of, runs_what_it_reads, sources

CORE = Path(flare_core.__file__).parent
PACKAGES = [*sources(CORE), *sources(Path(flare_adapters.__file__).parent)]
TESTS = sources(Path(__file__).parents[1])
LINES_LIMIT = 400
DATED = {
    "_audit_line.py",  # when a line was written
    "_desk.py",  # since when a server runs
    "_enrolment.py",  # until when an invitation holds
    "_registry.py",  # until when invitations and changed keys hold
    "_runs.py",  # when a run was made
    "_store.py",  # since when somebody is a member
}
"""Who looks at the date, which a person may set: for nothing that a run waits for."""
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


def test_no_run_waits_for_a_date() -> None:
    looks = re.compile(r"\btime\.time\(|\bdatetime\.(now|utcnow|today)\(")

    dated = {path.name for path in PACKAGES if looks.search(path.read_text("utf-8"))}

    assert dated == DATED


@pytest.mark.parametrize("module", UNSAFE)
def test_nothing_that_runs_what_it_reads_is_imported(module: str) -> None:
    assert not [path for path in PACKAGES if _imports(path, module)]


@pytest.mark.parametrize("source", PACKAGES, ids=lambda path: path.stem)
def test_nothing_runs_what_it_reads(source: Path) -> None:
    assert not runs_what_it_reads(source.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "exec(text)",
        "map(eval, texts)",
        "import builtins\nbuiltins.exec(text)",
        "from builtins import eval as read\nread(text)",
        "__import__(name)",
        "__import__(name='x')",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import yaml\nyaml.load(text, Loader)",
        "from yaml import load\nload(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_what_runs_what_it_reads_is_recognised(code: str) -> None:
    assert runs_what_it_reads(code)


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "spec.loader.exec_module(module)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import yaml\nyaml.safe_load(text)",
        "__import__('numpy')",
        "from safetensors.torch import load\nload(content)",
        "import json\njson.load(file)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
    ],
)
def test_what_only_looks_like_it_is_not(code: str) -> None:
    assert not runs_what_it_reads(code)


def test_nothing_is_mocked() -> None:
    sources_of_ours = [*PACKAGES, *TESTS]

    assert not [path for path in sources_of_ours if _imports(path, "unittest.mock")]


def test_no_file_is_too_long_to_read() -> None:
    lengths = {
        str(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGES
    }

    assert not {path: n for path, n in lengths.items() if n > LINES_LIMIT}
