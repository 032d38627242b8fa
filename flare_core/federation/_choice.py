"""The strategy that a plan names, with its settings checked."""

from typing import cast

import msgspec

from flare_core._errors import ConfigurationError
from flare_core._plan import StrategySettings
from flare_core._plugins import plugin
from flare_core.federation._strategy import Strategy

GROUP = "flare_core.strategies"
"""The entry points of installed strategies."""


def strategy_of(settings: StrategySettings) -> Strategy:
    """Return the strategy that a plan names.

    Raises:
        ConfigurationError: If it is not installed, is none, has no such setting, or a
            value does not fit.
    """
    kind = strategy_class(settings.name)
    try:
        return msgspec.convert(settings.settings, kind)
    except msgspec.ValidationError as exc:
        msg = f"strategy {settings.name!r}: {_in_the_plan(str(exc))}; {_has(kind)}"
        raise ConfigurationError(msg) from None


def strategy_class(name: str) -> type[Strategy]:
    """Return the class of a strategy that is installed.

    Raises:
        ConfigurationError: If it is not, or is no strategy.
    """
    found = plugin(GROUP, name)
    if isinstance(found, type) and issubclass(cast("type[object]", found), Strategy):
        return cast("type[Strategy]", found)
    msg = (
        f"the {GROUP} plugin {name!r} is {found!r}: expected a subclass of "
        "flare_core.Strategy; was it made for another version of flare-adapters?"
    )
    raise ConfigurationError(msg)


def _in_the_plan(complaint: str) -> str:
    """Return what msgspec says, with the place where the plan has it."""
    return complaint.replace("`$.", "`strategy.settings.")


def _has(kind: type[Strategy]) -> str:
    names = [field.name for field in msgspec.structs.fields(kind)]
    return f"its settings are {', '.join(names)}" if names else "it has no settings"
