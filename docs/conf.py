"""How Sphinx builds the documentation: offline, and without any framework."""

from importlib.metadata import version as version_of
from typing import Any, Union

from sphinx.application import Sphinx
from sphinx.ext.autodoc import mock

import flare_core
import flare_core.application

project = "flare-adapters"
author = "the flare-adapters contributors"
copyright = author  # noqa: A001 - Sphinx reads this name
release = version = version_of("flare-adapters")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
exclude_patterns = ["_build"]
default_role = "py:obj"
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# The adapters' classes are documented by their own words; what they inherit is not.
autodoc_mock_imports = [
    "accelerate",
    "ignite",
    "lightning",
    "peft",
    "torch",
    "transformers",
]
napoleon_attr_annotations = False  # the signature has them
napoleon_use_ivar = True
napoleon_use_rtype = False

# Sphinx 9.0: what stands in for a class cannot stand in `Tensor | None`, and hides
# the arguments of a class that is made from it.
with mock(["torch"]):
    from torch import Tensor

    _StandIn = type(Tensor).__mro__[1]
    _StandIn.__or__ = _StandIn.__ror__ = lambda *types: Union[types]  # noqa: UP007
    del _StandIn.__new__

# No inventory of another project is fetched, so its names lead nowhere.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|ignite|lightning|msgspec|numpy|os|pathlib|torch)\..*"),
    ("py:class", r"[\d.]+"),  # a limit in an annotation
    ("py:obj", r"(Engine|Trainer)(\..*)?"),
]

# A public name is documented where it is public, not in the module that defines it.
for _package in (flare_core.application, flare_core):
    for _name in _package.__all__:
        _value = getattr(_package, _name)
        if getattr(_value, "__module__", "").startswith("flare_core."):
            _value.__module__ = _package.__name__


def _readable(*event: Any) -> tuple[str | None, str | None]:
    """Write the default of a field that a factory makes in a way Sphinx can parse."""
    *_, arguments, returns = event
    return arguments and arguments.replace("<factory>", "..."), returns


def setup(app: Sphinx) -> None:
    """Connect what is defined here."""
    app.connect("autodoc-process-signature", _readable)
