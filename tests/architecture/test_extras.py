"""A missing framework is explained; a broken one keeps its own error."""

import importlib
from pathlib import Path

import pytest

from flare_adapters._extras import extra


def test_a_missing_framework_says_how_to_install_it() -> None:
    with (
        pytest.raises(ModuleNotFoundError) as caught,
        extra("monai", "no_such_framework"),
    ):
        importlib.import_module("no_such_framework.engine")

    assert str(caught.value) == (
        "flare_adapters.monai needs 'no_such_framework', which is not installed. "
        'Install it with: pip install "flare-adapters[monai]"'
    )
    assert caught.value.name == "no_such_framework"


def test_a_broken_framework_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import what_the_framework_needs\n"
    (tmp_path / "broken_framework.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'what_the_fr"),
        extra("monai", "broken_framework"),
    ):
        importlib.import_module("broken_framework")


def test_an_error_of_another_kind_passes() -> None:
    with pytest.raises(ImportError, match="old glibc"), extra("monai", "ignite"):
        raise ImportError("old glibc")  # noqa: EM101, TRY003 - any error will do
