from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_core import Stop
from flare_core.federation import Score, Scores

_VALUES = st.lists(st.floats(-9, 9), max_size=12)


def _after(stop: Stop, *values: float | None) -> Scores:
    scores = Scores(stop)
    for number, value in enumerate(values):
        scores.add(number, {} if value is None else {"loss": value, "other": 0.0})
    return scores


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 2)])
def test_the_first_of_the_best_models_is_the_best(mode: str, best: int) -> None:
    values = (2.0, 1.0, 3.0, 1.0, 3.0)
    stop = Stop(metric="loss", mode="min" if mode == "min" else "max")

    scores = _after(stop, *values)

    assert scores.best == Score(best, values[best])
    assert scores.reason == ""


@given(_VALUES)
def test_the_least_is_the_negative_of_the_greatest(values: list[float]) -> None:
    least = _after(Stop(metric="loss", patience=2), *values)
    greatest = _after(
        Stop(metric="loss", mode="max", patience=2), *(-one for one in values)
    )

    assert (least.best and least.best.number) == (
        greatest.best and greatest.best.number
    )
    assert bool(least.reason) == bool(greatest.reason)


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ((3.0, 2.0, 2.5), False),
        ((3.0, 2.0, 2.5, 2.1), True),
        ((3.0, 2.0, 2.5, 1.0), False),
        ((3.0, 2.0, 2.0, 2.0), True),  # the same is not better
        ((3.0, 2.0, 2.5, None), False),  # nothing is known of that one
        ((3.0, 2.0, 2.5, None, 2.1), True),
    ],
)
def test_patience_ends_with_so_many_models_in_vain(
    values: tuple[float | None, ...], *, over: bool
) -> None:
    scores = _after(Stop(metric="loss", patience=2), *values)

    assert bool(scores.reason) is over
    if over:
        assert scores.reason == (
            "2 models, one after the other, were not better than the best loss, 2"
        )


@pytest.mark.parametrize(
    ("mode", "value", "over"),
    [
        ("min", 0.3, True),
        ("min", 0.29, True),
        ("min", 0.31, False),
        ("max", 0.31, True),
        ("max", 0.29, False),
    ],
)
def test_a_target_ends_with_the_first_model_that_is_as_good(
    mode: str, value: float, *, over: bool
) -> None:
    stop = Stop(metric="loss", mode="min" if mode == "min" else "max", target=0.3)

    reason = _after(stop, value).reason

    assert reason == (f"loss is {value}, and the target 0.3" if over else "")


def test_without_a_metric_nothing_is_compared() -> None:
    scores = _after(Stop(), 3.0, 1.0)

    assert scores.best is None
    assert scores.reason == ""


@pytest.mark.parametrize("settings", [{"patience": 3}, {"target": 0.5}])
def test_what_ends_a_run_needs_a_metric(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="say of which metric, in metric"):
        Stop(**settings)
