"""The strategy that the how-to shows works as it says."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from averaging import Averaging
from flare_core import ConfigurationError, StrategySettings
from flare_core.federation import strategy_of
from flare_core.management.cli import app
from packages import Install

_HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
_PACKAGE = _HOW_TO / "federated-lion"
_MOST_LINES = 40


@pytest.fixture
def lion(install: Install) -> Callable[..., StrategySettings]:
    """Install the package as it stands; return what a plan says of it."""
    project = tomllib.loads((_PACKAGE / "pyproject.toml").read_text())["project"]
    ((group, points),) = project["entry-points"].items()
    ((name, place),) = points.items()
    module, _, what = place.partition(":")
    code = (_PACKAGE / f"{module}.py").read_text()
    install(group, code, **{name: what})
    return lambda **settings: StrategySettings(name=name, settings=settings)


def test_it_takes_no_more_lines_than_that() -> None:
    files = (_PACKAGE / "pyproject.toml", _PACKAGE / "federated_lion.py")

    assert sum(len(file.read_text().splitlines()) for file in files) <= _MOST_LINES


def test_each_parameter_goes_the_same_way_far(
    lion: Callable[..., StrategySettings], tmp_path: Path
) -> None:
    strategy = strategy_of(lion(learning_rate=0.5, beta1=0.5, beta2=0.75))
    rounds = Averaging(tmp_path, strategy, {"w": np.zeros(3)})

    rounds.play(({"w": [8.0, -0.1, 0.0]}, 3))
    model = rounds.play(({"w": [-2.0, -0.6, 0.0]}, 3))

    # momentum 2 and then half of it and half of a step of -2.5
    assert model["w"].tolist() == [0.5 - 0.5, -0.5 - 0.5, 0.0]


def test_it_is_listed_with_its_settings(lion: Callable[..., StrategySettings]) -> None:
    assert lion().name == "fedlion"

    shown = CliRunner().invoke(app, ["strategies"]).stdout

    assert "fedlion\n  Lion at the server: each parameter goes" in shown
    assert "beta2 (number ≥ 0 < 1; `0.99`): Share of the momentum that" in shown


def test_its_settings_are_checked(lion: Callable[..., StrategySettings]) -> None:
    with pytest.raises(ConfigurationError, match=r"> 0.0 - at `strategy.settings.lea"):
        strategy_of(lion(learning_rate=-1))


def test_the_how_to_tells_of_every_strategy_that_comes_along() -> None:
    page = (_HOW_TO / "choose-a-strategy.md").read_text(encoding="utf-8")

    names = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)

    shown = CliRunner().invoke(app, ["strategies"]).stdout
    assert names
    assert sorted(names) == [
        line for line in shown.splitlines() if re.fullmatch(r"\w+", line)
    ]
