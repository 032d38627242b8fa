"""What an import costs, seen in a fresh interpreter."""

import pytest

from inspection import loaded_by, run_fresh

FRAMEWORKS = {
    "accelerate",
    "ignite",
    "lightning",
    "monai",
    "peft",
    "pytorch_lightning",
    "torch",
    "transformers",
}
NEEDED_BY_THE_COMMAND_LINE = {"rich", "typer"}
IMPORT_LIMIT_S = 0.2
NUM_TRIES = 5  # the best one counts
TIMED_IMPORT = """
import time
began = time.process_time()  # a clock on the wall would time the machine's other work
import numpy
numpy_s = time.process_time() - began
import flare_core
print(time.process_time() - began, numpy_s)
"""


@pytest.mark.parametrize("package", ["flare_core", "flare_adapters"])
def test_loads_no_framework_and_no_command_line(package: str) -> None:
    loaded = loaded_by(f"import {package}")

    assert package in loaded
    assert not loaded & (FRAMEWORKS | NEEDED_BY_THE_COMMAND_LINE)


def test_the_core_is_there_at_once() -> None:
    seconds, numpy_s = min(_timed_import() for _ in range(NUM_TRIES))

    # Where cores are shared, NumPy alone, which is most of it, takes twice as long.
    assert seconds < max(IMPORT_LIMIT_S, 2 * numpy_s)


def _timed_import() -> tuple[float, float]:
    seconds, numpy_s = map(float, run_fresh(TIMED_IMPORT).split())
    return seconds, numpy_s


def test_the_adapters_are_listed_without_being_imported() -> None:
    loaded = loaded_by(
        "from importlib.metadata import entry_points\n"
        "names = entry_points(group='flare_core.adapters').names\n"
        "assert names == {'huggingface', 'lightning', 'monai'}, names"
    )

    assert not loaded & (FRAMEWORKS | {"flare_adapters"})


def test_what_every_process_of_a_site_loads_at_its_start_is_next_to_nothing() -> None:
    loaded = loaded_by("import flare_adapters._unchanged._imports")

    assert "flare_adapters" in loaded
    assert not loaded & (FRAMEWORKS | {"flare_core", "msgspec", "numpy", "zmq"})
