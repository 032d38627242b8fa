import math

import numpy as np
import pytest

from flare_core import DTYPES, Admission, Layout, ModelState, TensorClass, Update
from flare_core.federation import (
    differing_bases,
    differing_layouts,
    differing_schedules,
    inadmissible,
    weighted_mean,
)

MODEL = ModelState({"fc.weight": np.zeros((2, 3), "f4"), "fc.bias": np.zeros(2, "f4")})


def _update(weights: ModelState, num_examples: int = 1) -> Update:
    return Update(site="b", round_number=0, weights=weights, num_examples=num_examples)


def _layouts(other: ModelState) -> dict[str, Layout]:
    return {"b": other.layout, "a": MODEL.layout, "c": MODEL.layout}


def test_a_control_that_goes_too_far_is_refused_by_name() -> None:
    weights = {"w": np.zeros(2, "f4"), "c": np.zeros(2, "f4")}
    classes = {"c": TensorClass.CONTROL}
    current = ModelState(weights, classes=classes)
    moved = ModelState(weights | {"c": np.asarray([3, 4], "f4")}, classes=classes)
    most = Admission(most_norm=1, most_control=4.9)

    refusal = inadmissible(_update(moved), current, most)

    assert inadmissible(_update(moved), current, Admission(most_norm=1)) is None
    assert refusal is not None
    assert "most of it in tensor 'c'" in refusal.what
    assert refusal.expected == "at most 4.9 (admission.most_control in the plan)"
    assert refusal.got == "5"


def test_equal_layouts_are_accepted() -> None:
    assert not list(differing_layouts(_layouts(MODEL)))


@pytest.mark.parametrize(
    ("other", "what", "expected", "got"),
    [
        (
            {"fc.weight": np.zeros((2, 4), "f4"), "fc.bias": np.zeros(2, "f4")},
            "tensor 'fc.weight'",
            "F32 (2, 3) as at site 'a'",
            "F32 (2, 4)",
        ),
        (
            {"fc.weight": np.zeros((2, 3), "f2"), "fc.bias": np.zeros(2, "f4")},
            "tensor 'fc.weight'",
            "F32 (2, 3) as at site 'a'",
            "F16 (2, 3)",
        ),
        (
            {"fc.weight": np.zeros((2, 3), "f4")},
            "tensor 'fc.bias'",
            "F32 (2,) as at site 'a'",
            "no such tensor",
        ),
        (
            {**MODEL, "head.weight": np.zeros(1, "f4")},
            "tensor 'head.weight'",
            "no such tensor as at site 'a'",
            "F32 (1,)",
        ),
    ],
    ids=["shape", "dtype", "missing", "extra"],
)
def test_names_the_site_and_the_tensor_that_differ(
    other: dict[str, object], what: str, expected: str, got: str
) -> None:
    layouts = _layouts(ModelState(other))  # type: ignore[arg-type]  # arrays, all

    (refusal,) = differing_layouts(layouts)

    assert (refusal.reason, refusal.site) == ("layout", "b")
    assert (refusal.what, refusal.expected, refusal.got) == (what, expected, got)


def test_names_the_class_where_nothing_else_differs() -> None:
    other = ModelState(dict(MODEL), classes={"fc.bias": TensorClass.BUFFER})

    (refusal,) = differing_layouts(_layouts(other))

    assert refusal.expected == "F32 (2,) (parameter) as at site 'a'"
    assert refusal.got == "F32 (2,) (buffer)"


def test_names_each_site_whose_frozen_base_differs() -> None:
    bases = {"c": "1" * 64, "a": "0" * 64, "b": "", "d": "0" * 64}

    b, c = differing_bases(bases)

    assert (b.reason, b.site, b.got) == ("base", "b", "nothing frozen")
    assert (c.reason, c.site, c.got) == ("base", "c", "fingerprint 111111111111")
    assert b.expected == "fingerprint 000000000000 as at site 'a'"


def test_names_each_site_whose_schedule_differs() -> None:
    schedules = {"a": "every_n_steps = 5", "b": "every_n_epochs = 1"}

    (refusal,) = differing_schedules(schedules)

    assert (refusal.reason, refusal.site) == ("schedule", "b")
    assert refusal.expected == "every_n_steps = 5 as at site 'a'"
    assert refusal.got == "every_n_epochs = 1"


def test_a_fitting_update_is_admitted() -> None:
    assert inadmissible(_update(MODEL), MODEL) is None


@pytest.mark.parametrize("num_examples", [0, -1])
def test_an_update_without_examples_is_not(num_examples: int) -> None:
    refusal = inadmissible(_update(MODEL, num_examples), MODEL)

    assert refusal is not None
    assert (refusal.reason, refusal.what) == ("update", "num_examples")
    assert refusal.got == str(num_examples)


def test_an_update_of_another_layout_is_an_update_refused() -> None:
    other = ModelState({**MODEL, "fc.bias": np.zeros(3, "f4")})

    refusal = inadmissible(_update(other), MODEL)

    assert refusal is not None
    assert (refusal.reason, refusal.what) == ("update", "tensor 'fc.bias'")
    assert (refusal.expected, refusal.got) == ("F32 (2,)", "F32 (3,)")


_WITH_NAN = [c for c in DTYPES if c[0] in "FC" and c[:2] != "F4" and c[:3] != "F6_"]
_WITH_INFINITY = ["F8_E5M2", "F16", "BF16", "F32", "F64", "C64"]


@pytest.mark.parametrize("code", _WITH_NAN)
def test_nan_is_refused_in_every_type_that_has_it(code: str) -> None:
    array = np.ones((2, 3)).astype(DTYPES[code])
    fine = ModelState({"fine": np.zeros(2), "w": array})
    array = array.copy()
    array[1, 1] = np.nan
    diverged = ModelState({"fine": np.zeros(2), "w": array})

    refusal = inadmissible(_update(diverged), fine)

    assert inadmissible(_update(fine), fine) is None
    assert refusal is not None
    assert (refusal.what, refusal.got) == ("tensor 'w'", "NaN or infinity")


@pytest.mark.parametrize("code", _WITH_INFINITY)
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused_in_every_type_that_has_it(code: str, value: float) -> None:
    state = ModelState({"w": np.asarray([1, value]).astype(DTYPES[code])})

    refusal = inadmissible(_update(state), state)

    assert refusal is not None
    assert refusal.what == "tensor 'w'"


def test_the_largest_finite_values_are_admitted() -> None:
    state = ModelState(
        {"f64": np.asarray([1.7e308]), "f16": np.asarray([65504], "f2"), "i": [2**62]}
    )

    assert inadmissible(_update(state), state) is None


def test_metrics_are_averaged_by_examples_over_the_sites_that_report_them() -> None:
    metrics = {"a": {"loss": 1.0}, "b": {"loss": 4.0, "auc": 0.5}, "c": {}}

    means = weighted_mean(metrics, {"a": 2, "b": 1, "c": 100})

    assert means == {"auc": 0.5, "loss": 2.0}


def test_no_metric_can_stop_the_server() -> None:
    metrics = {
        "a": {"up": math.inf, "huge": 1.7e308, "nan": math.nan},
        "b": {"up": -math.inf, "huge": 1.7e308, "nan": 1.0},
    }

    means = weighted_mean(metrics, {"a": 1, "b": 1})

    assert math.isnan(means["up"])
    assert math.isnan(means["nan"])
    assert means["huge"] == math.inf


def test_metrics_without_any_weight_are_no_number() -> None:
    assert math.isnan(weighted_mean({"a": {"loss": 1.0}}, {"a": 0})["loss"])


def test_a_count_that_float64_does_not_hold_is_refused() -> None:
    assert inadmissible(_update(MODEL, 2**53 - 1), MODEL) is None

    refusal = inadmissible(_update(MODEL, 2**53), MODEL)

    assert refusal is not None
    assert refusal.what == "num_examples"
    assert refusal.expected == "at most 9,007,199,254,740,991"
