"""How Sphinx builds the documentation: offline, and without any framework."""

import sys
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar, Union

from docutils.nodes import Element, Node
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.autodoc import mock
from sphinx.util.docutils import SphinxDirective

import flare_core
import flare_core.application
from flare_core.management._described import settings

sys.path.insert(0, str(Path(__file__).parent))
from tables import choices_page, pairs_table, roles_table, settings_table

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
    "torchmetrics",
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


class _Table(SphinxDirective):
    """A table that is made from the code."""

    def _parsed(self, markdown: str) -> list[Node]:
        parent = Element()
        lines = StringList(markdown.splitlines(), source=self.get_location())
        self.state.nested_parse(lines, self.content_offset, parent)
        return parent.children


class SettingsTable(_Table):
    """``{settings} package.Class``: its keys, with what its docstring says of them.

    ``:without:`` names fields that are no keys.
    """

    required_arguments = 1
    option_spec: ClassVar = {"without": str.split}

    def run(self) -> list[Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        struct = getattr(import_module(module), name)
        rows = settings(struct, without=self.options.get("without", ()))
        return self._parsed(settings_table(list(rows)))


class RolesTable(_Table):
    """``{roles}``: who may do what."""

    def run(self) -> list[Node]:
        """Return the table."""
        return self._parsed(roles_table())


class PairsTable(_Table):
    """``{pairs}``: what in a plan does not go together."""

    def run(self) -> list[Node]:
        """Return the table."""
        return self._parsed(pairs_table())


class ChoicesPage(_Table):
    """``{choices} strategy``: what is installed for a table, with the settings."""

    required_arguments = 1

    def run(self) -> list[Node]:
        """Return a section for each."""
        return self._parsed(choices_page(self.arguments[0]))


def setup(app: Sphinx) -> None:
    """Connect what is defined here."""
    app.add_directive("settings", SettingsTable)
    app.add_directive("roles", RolesTable)
    app.add_directive("pairs", PairsTable)
    app.add_directive("choices", ChoicesPage)
    app.connect("autodoc-process-signature", _readable)
