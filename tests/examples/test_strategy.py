"""The strategy that the how-to shows works as it says."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from averaging import Averaging
from flare_core import Aggregation, ConfigurationError, Strategy, StrategySettings
from flare_core.federation import AGGREGATIONS, STRATEGIES, Choice
from flare_core.management._strategies import installed
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
    strategy = STRATEGIES.of(lion(learning_rate=0.5, beta1=0.5, beta2=0.75))
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
        STRATEGIES.of(lion(learning_rate=-1))


@pytest.mark.parametrize(
    ("page", "choice"),
    [
        ("choose-a-strategy", STRATEGIES),
        ("hold-out-against-bad-sites", AGGREGATIONS),
    ],
    ids=str,
)
def test_the_how_to_tells_of_all_that_come_along(
    page: str, choice: Choice[Strategy] | Choice[Aggregation]
) -> None:
    text = (_HOW_TO / f"{page}.md").read_text(encoding="utf-8")

    names = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)

    assert names
    assert sorted(names) == [one.name for one in installed(choice)]
