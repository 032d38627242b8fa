"""Finds by name what other packages bring along, through entry points."""

from typing import Any

from flare_core._errors import ConfigurationError


def plugin(group: str, name: str) -> Any:
    """Return the object that an installed package offers under this name.

    Args:
        group: The entry point group, e.g. ``"flare_core.strategies"``.
        name: The name in that group.

    Raises:
        ConfigurationError: If nothing of that name is installed.
    """
    # Costs a tenth of `import flare_core`, which most often is all one wants.
    from importlib.metadata import entry_points  # noqa: PLC0415

    found = entry_points(group=group)
    if name not in found.names:
        installed = ", ".join(sorted(found.names)) or "none"
        msg = f"no {group} plugin is called {name!r}; installed: {installed}"
        raise ConfigurationError(msg)
    return found[name].load()


def plugins(group: str) -> list[Any]:
    """Return all objects that installed packages offer in a group, by their names.

    Args:
        group: The entry point group, e.g. ``"flare_core.startup"``.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - see above

    found = entry_points(group=group)
    return [found[name].load() for name in sorted(found.names)]
