import msgspec
import pytest

from flare_core import ConfigurationError, Strategy, StrategySettings
from flare_core.federation import STRATEGIES, FedAvg
from packages import Install

_POWERS = """
from typing import Annotated

import msgspec

import flare_core


class Powers(flare_core.Strategy, frozen=True):
    exponent: Annotated[float, msgspec.Meta(gt=0, lt=2)] = 1.0
    much: bool = False


Nothing = dict
"""


@pytest.fixture(autouse=True)
def powers(install: Install) -> None:
    install("flare_core.strategies", _POWERS, powers="Powers", nothing="Nothing")


def _chosen(name: str, **settings: float | str) -> Strategy:
    return STRATEGIES.of(StrategySettings(name=name, settings=settings))


def test_federated_averaging_is_what_a_plan_names_that_names_nothing() -> None:
    assert STRATEGIES.of(StrategySettings()) == FedAvg()


def test_a_strategy_is_its_settings_in_their_types() -> None:
    chosen = _chosen("powers", exponent=1, much=True)

    assert msgspec.to_builtins(chosen) == {"exponent": 1.0, "much": True}


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("fedavgg", {}, "is called 'fedavgg'; installed: .*fedavg.*, nothing, powers"),
        ("", {}, "is called ''; installed: "),
        ("nothing", {}, "'nothing' is <class 'dict'>: expected a subclass of flare_co"),
        ("fedavg", {"mu": 1}, "'fedavg': .* unknown field `mu`; it has no settings"),
        ("powers", {"e": 1}, "'powers': .* field `e`; its settings are exponent, much"),
        ("powers", {"exponent": 2}, "< 2.0 - at `strategy.settings.exponent`; its set"),
        ("powers", {"exponent": "x"}, "Expected `float`, got `str` - at `strategy.set"),
        ("powers", {"exponent": float("nan")}, "Expected `float` > 0.0"),
    ],
)
def test_what_a_plan_cannot_have_is_named_with_what_it_can(
    name: str, settings: dict[str, float | str], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        _chosen(name, **settings)
