import pytest
from typer.testing import CliRunner

from flare_core import Aggregation, Strategy
from flare_core.federation import AGGREGATIONS, STRATEGIES, Choice
from flare_core.management._described import settings
from flare_core.management._strategies import installed
from flare_core.management.cli import app
from packages import Install

_HALF = '''
from typing import Annotated

import msgspec

from flare_core import Strategy


class Half(Strategy, frozen=True):
    """Goes a part of the way.

    It is for tests.

    Attributes:
        way: How much of it, a fraction.
    """

    way: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5

    @property
    def moments(self):
        return {"before": 0.0}
'''


@pytest.mark.parametrize("choice", [STRATEGIES, AGGREGATIONS], ids=str)
def test_every_setting_has_a_word(
    choice: Choice[Strategy] | Choice[Aggregation],
) -> None:
    for one in installed(choice):
        assert all(row.meaning for row in settings(choice.named(one.name)))


def test_a_strategy_that_another_package_brings_along_is_shown(
    install: Install,
) -> None:
    install("flare_core.strategies", _HALF, half="Half")

    shown = CliRunner().invoke(app, ["strategies"]).stdout

    assert "half\n  Goes a part of the way.\n" in shown
    assert "  way (number > 0 ≤ 1; `0.5`): How much of it, a fraction.\n" in shown
    assert "fedavg\n" in shown


def test_what_is_no_strategy_is_named_instead(install: Install) -> None:
    install("flare_core.strategies", "Half = 0.5\n", half="Half")

    shown = CliRunner().invoke(app, ["strategies"])

    assert shown.exit_code == 1
    assert "plugin 'half' is 0.5: expected a subclass of flare_core.Strat" in (
        shown.stderr
    )


def test_moments_are_counted(install: Install) -> None:
    install("flare_core.strategies", _HALF, half="Half")

    found = {one.name: one.default for one in installed(STRATEGIES)}

    half, fedavg = found["half"], found["fedavg"]
    assert isinstance(half, Strategy)
    assert isinstance(fedavg, Strategy)
    assert (len(half.moments), len(fedavg.moments)) == (1, 0)
