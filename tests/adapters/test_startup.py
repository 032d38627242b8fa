"""What runs when Python starts, and when it imports a framework."""

import importlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

from flare_adapters._unchanged import lightning_callbacks
from flare_adapters._unchanged._folder import STARTUP
from flare_adapters._unchanged._imports import Watch
from flare_core.management._unchanged import adapted
from inspection import loaded_by, run_fresh

WATCHES = "import sys; print([type(one).__name__ for one in sys.meta_path[:1]])"
TRAINER = (
    "import transformers.trainer as t; print(hasattr(t.Trainer.train, '__wrapped__'))"
)
FRAMEWORKS = {"ignite", "lightning", "monai", "pytorch_lightning", "torch"}
FRAMEWORKS |= {"flare_core", "numpy", "transformers"}


def python(
    code: str, environment: dict[str, str], *, program: str | Path = sys.executable
) -> tuple[str, str]:
    """Run code in a fresh interpreter, and return what it said."""
    done = subprocess.run(
        [program, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout.strip(), done.stderr.strip()


def test_the_imports_of_a_script_to_be_federated_are_watched() -> None:
    assert python(WATCHES, adapted(os.environ)) == ("['Watch']", "")


@pytest.mark.parametrize("change", [{"FLARE_ADAPT": ""}, {"FLARE_SITE": "off"}])
def test_nothing_is_watched_where_nothing_is_to_be_federated(
    change: dict[str, str],
) -> None:
    said, _ = python(WATCHES, adapted(os.environ) | change)

    assert said != "['Watch']"


def test_a_hugging_face_trainer_outside_is_untouched() -> None:
    inside, _ = python(TRAINER, adapted(os.environ))
    outside, _ = python(TRAINER, adapted(os.environ) | {"FLARE_ADAPT": ""})

    assert (inside, outside) == ("True", "False")


def test_lightning_is_given_nothing_and_loads_nothing_outside() -> None:
    loaded = loaded_by(
        "from flare_adapters._unchanged import lightning_callbacks\n"
        "assert lightning_callbacks() == []"
    )

    assert not loaded & FRAMEWORKS


@pytest.mark.parametrize("group", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_finds_the_callbacks_by_their_entry_point(group: str) -> None:
    found = importlib.metadata.entry_points(group=f"{group}.callbacks_factory")

    assert found["flare"].load() is lightning_callbacks


def test_a_script_that_has_an_adapter_is_left_to_itself() -> None:
    run_fresh(
        "import os\n"
        "os.environ['FLARE_ADAPT'] = '1'\n"
        "from flare_adapters._unchanged import lightning_callbacks\n"
        "from flare_core import join\n"
        "assert lightning_callbacks() == []"
    )


def test_the_users_own_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.mine = __file__\n")
    own = {"PYTHONPATH": str(tmp_path)}

    code = "import sys, sitecustomize; print(sys.mine, sitecustomize.__file__)"
    said, _ = python(code, adapted(os.environ | own))

    assert said.split() == [str(tmp_path / "sitecustomize.py")] * 2


def test_an_error_in_the_users_own_sitecustomize_is_still_shown(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise OSError('odd')\n")
    own = {"PYTHONPATH": str(tmp_path)}

    _, complaint = python("", adapted(os.environ | own))

    assert "OSError: odd" in complaint


def test_a_python_without_this_package_starts_as_ever(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)

    said = python("print('up')", adapted({}), program=tmp_path / "bin" / "python")

    assert said == ("up", "")


def test_the_environment_keeps_what_the_user_had() -> None:
    path = os.pathsep.join(["/mine", STARTUP, "/yours"])

    found = adapted({"PYTHONPATH": path, "HOME": "/root"})

    assert found == {
        "FLARE_ADAPT": "1",
        "HOME": "/root",
        "PYTHONPATH": os.pathsep.join([STARTUP, "/mine", "/yours"]),
    }


def watched(
    name: str, folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> list[ModuleType]:
    """Write a module, watch it, and return the list of those acted on."""
    (folder / f"{name}.py").write_text(source)
    acted: list[ModuleType] = []
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "meta_path", [Watch({name: acted.append}), *sys.meta_path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    return acted


def test_a_watched_module_is_acted_on_once_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted = watched("seen_module", tmp_path, "value = 1\n", monkeypatch)

    module = importlib.import_module("seen_module")

    assert acted == [module]
    assert module.value == 1
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__


def test_a_watched_module_that_breaks_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import what_the_framework_needs\n"
    acted = watched("broken_module", tmp_path, source, monkeypatch)

    with pytest.raises(ModuleNotFoundError, match="No module named 'what_the_fr"):
        importlib.import_module("broken_module")

    assert not acted


def test_a_watched_module_that_is_missing_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys, "meta_path", [Watch({"missing_module": print}), *sys.meta_path]
    )

    with pytest.raises(ModuleNotFoundError, match="No module named 'missing_module'"):
        importlib.import_module("missing_module")
