"""An adapter loads its own framework, and says so where it is missing."""

import importlib

import pytest

from inspection import api_order, loaded_by, public_names, run_fresh

OTHER_FRAMEWORKS = {
    "huggingface": {"ignite", "lightning", "monai", "pytorch_lightning"},
    "lightning": {"ignite", "monai", "transformers"},
    "monai": {
        "accelerate",
        "lightning",
        "monai",
        "peft",
        "pytorch_lightning",
        "transformers",
    },
}
OWN_FRAMEWORK = {
    "huggingface": "transformers",
    "lightning": "lightning",
    "monai": "ignite",
}
ITS_IMPORT = {
    "huggingface": "import transformers.trainer, peft",
    "lightning": "import lightning.pytorch",
    "monai": "import ignite.engine",
}
ADAPTERS = sorted(OWN_FRAMEWORK)
IMPORT_WITHOUT = """
import sys
sys.modules[{framework!r}] = None
try:
    import flare_adapters.{adapter}
except ModuleNotFoundError as exc:
    print(exc)
"""


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loads_no_framework_that_its_own_does_not_load(adapter: str) -> None:
    # torchmetrics, which Lightning needs, loads transformers where it finds it.
    loaded = loaded_by(f"import flare_adapters.{adapter}", after=ITS_IMPORT[adapter])

    assert "flare_adapters" in loaded
    assert not loaded & OTHER_FRAMEWORKS[adapter]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_says_how_to_install_a_missing_framework(adapter: str) -> None:
    framework = OWN_FRAMEWORK[adapter]

    said = run_fresh(IMPORT_WITHOUT.format(adapter=adapter, framework=framework))

    assert said.strip() == (
        f"flare_adapters.{adapter} needs {framework!r}, which is not installed. "
        f'Install it with: pip install "flare-adapters[{adapter}]"'
    )


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_offers_what_all_says_and_no_more(adapter: str) -> None:
    package = importlib.import_module(f"flare_adapters.{adapter}")

    names: list[str] = package.__all__
    assert set(names) == public_names(package)
    assert names == sorted(names, key=api_order)
