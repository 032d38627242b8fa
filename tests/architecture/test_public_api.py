"""The API is what `__all__` says, in the core and in all its layers."""

import importlib
import inspect
import pkgutil

import pytest

import flare_core
from inspection import api_order, public_names

PACKAGES = [
    "flare_adapters",
    "flare_core",
    *(
        module.name
        for module in pkgutil.walk_packages(flare_core.__path__, "flare_core.")
        if module.ispkg
    ),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_complete_and_nothing_leaks(name: str) -> None:
    package = importlib.import_module(name)

    assert set(getattr(package, "__all__", [])) == public_names(package)


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted(name: str) -> None:
    names: list[str] = getattr(importlib.import_module(name), "__all__", [])

    assert names == sorted(names, key=api_order)


@pytest.mark.parametrize("name", flare_core.__all__)
def test_what_is_public_says_what_it_is(name: str) -> None:
    value = getattr(flare_core, name)

    is_defined_here = getattr(value, "__module__", "").startswith("flare_core")
    assert inspect.getdoc(value) or not is_defined_here
