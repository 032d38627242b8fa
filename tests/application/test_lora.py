"""LoRA weights in a round: combined as products where the plan allows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from averaging import Averaging, DivergedError
from flare_core import ConfigurationError, Plan, Server, Strategy
from flare_core.federation import (
    FedAdam,
    FedAvg,
    FedNova,
    Median,
    QFedAvg,
    chosen,
    lora_rule,
)

_Arrays = Mapping[str, npt.NDArray[Any]]
_Q, _CONV = "layers.0.q_proj", "layers.1.conv"


def _site(seed: int, *, scale: float = 1.0, dtype: Any = np.float32) -> dict[str, Any]:
    """Return a model of two LoRA modules, with a bias and a head beside them."""
    random = np.random.default_rng(seed)
    shapes = {
        f"{_Q}.lora_A.weight": (4, 24),
        f"{_Q}.lora_B.weight": (16, 4),
        f"{_Q}.lora_B.bias": (16,),
        f"{_Q}.lora_magnitude_vector": (16,),
        f"{_CONV}.lora_A.weight": (2, 3, 3, 3),
        f"{_CONV}.lora_B.weight": (8, 2, 1, 1),
        "score.weight": (3, 16),
    }
    return {
        name: (scale * random.normal(size=shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def _change(model: Mapping[str, Any], module: str) -> npt.NDArray[np.float64]:
    """Return what LoRA weights add to the weight of a module."""
    b = np.asarray(model[f"{module}.lora_B.weight"], np.float64)
    a = np.asarray(model[f"{module}.lora_A.weight"], np.float64)
    return np.asarray(b.reshape(len(b), -1) @ a.reshape(len(a), -1))


def _plan(**settings: Any) -> Plan:
    plan = Plan(rounds=1)
    for key, value in settings.items():
        plan = plan.with_setting(f"{key.replace('__', '.')}={value}")
    return plan


def test_the_next_factors_are_nearest_to_the_mean_of_the_products(
    tmp_path: Path,
) -> None:
    rounds = Averaging(tmp_path, FedAvg(), _site(0, dtype=np.float64))
    sites = [_site(seed, dtype=np.float64) for seed in (1, 2, 3)]

    model = rounds.play(*zip(sites, [10, 20, 30], strict=True))

    for module, rank in ((_Q, 4), (_CONV, 2)):
        changes = [_change(site, module) for site in sites]
        wanted = np.average(changes, axis=0, weights=[10, 20, 30])
        values = np.linalg.svd(wanted, compute_uv=False)
        error = np.linalg.norm(wanted - _change(model, module))
        assert error == pytest.approx(np.sqrt(np.sum(values[rank:] ** 2)), rel=1e-12)


def test_what_is_no_factor_is_averaged(tmp_path: Path) -> None:
    rounds = Averaging(tmp_path, FedAvg(), _site(0, dtype=np.float64))
    one, other = (_site(seed, dtype=np.float64) for seed in (1, 2))

    model = rounds.play((one, 1), (other, 3))

    for name in (f"{_Q}.lora_B.bias", f"{_Q}.lora_magnitude_vector", "score.weight"):
        np.testing.assert_allclose(model[name], (one[name] + 3 * other[name]) / 4)


def test_a_round_says_what_was_lost(tmp_path: Path) -> None:
    rounds = Averaging(tmp_path, FedAvg(), _site(0))
    sites = [_site(seed) for seed in (1, 2)]

    model = rounds.play((sites[0], 1), (sites[1], 1))

    report = rounds.lora
    assert report is not None
    assert report.aggregate == "product"
    wanted, came, averaged = [], [], []
    for module in (_Q, _CONV):
        wanted.append(np.mean([_change(one, module) for one in sites], axis=0))
        came.append(_change(model, module))
        mean = {name: (sites[0][name] + sites[1][name]) / 2 for name in sites[0]}
        averaged.append(_change(mean, module))
    assert report.error == pytest.approx(_error(came, wanted), rel=1e-5)
    assert report.averaging_error == pytest.approx(_error(averaged, wanted), rel=1e-5)
    assert report.retained == pytest.approx(1 - report.error**2)
    each = [_error([one], [other]) for one, other in zip(came, wanted, strict=True)]
    assert report.worst_error == pytest.approx(max(each), rel=1e-5)
    assert report.worst_module == (_Q, _CONV)[int(np.argmax(each))]


def _error(came: list[npt.NDArray[Any]], wanted: list[npt.NDArray[Any]]) -> float:
    apart = [one - other for one, other in zip(came, wanted, strict=True)]
    lengths = [
        np.linalg.norm(np.concatenate([m.ravel() for m in of]))
        for of in (apart, wanted)
    ]
    return float(lengths[0] / lengths[1])


def test_one_site_gets_its_own_weights_back(tmp_path: Path) -> None:
    site = _site(1)
    rounds = Averaging(tmp_path, FedAvg(), _site(0))

    model = rounds.play((site, 7))

    assert all(np.array_equal(model[name], site[name]) for name in site)


def test_the_first_ranks_are_the_best_where_sites_may_cut_the_rest_off(
    tmp_path: Path,
) -> None:
    site = _site(1, dtype=np.float64)
    plan = _plan(lora__rank=4)
    rounds = Averaging(tmp_path, FedAvg(), _site(0, dtype=np.float64), plan=plan)

    model = rounds.play((site, 7))

    np.testing.assert_allclose(_change(model, _Q), _change(site, _Q), atol=1e-12)
    lengths = np.linalg.norm(model[f"{_Q}.lora_A.weight"], axis=1)
    assert np.all(np.diff(lengths) < 0)


def test_factors_are_averaged_where_the_plan_says_so(tmp_path: Path) -> None:
    plan = _plan(lora__aggregate="fedavg")
    rounds = Averaging(tmp_path, FedAvg(), _site(0), plan=plan)
    one, other = _site(1), _site(2)

    model = rounds.play((one, 1), (other, 1))

    for name in one:
        np.testing.assert_allclose(model[name], (one[name] + other[name]) / 2, 1e-5)
    report = rounds.lora
    assert report is not None
    assert (report.aggregate, report.error) == ("fedavg", report.averaging_error)
    assert report.error > np.sqrt(1 - report.retained)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (FedAdam(), {"strategy__name": "fedadam"}),
        (FedNova(), {"strategy__name": "fednova"}),
        (QFedAvg(learning_rate=0.1), {"strategy__name": "qfedavg"}),
        (FedAvg(), {"aggregation__name": "median"}),
        (FedAvg(), {"local__name": "scaffold"}),
        (FedAvg(), {"local__name": "feddyn"}),
        (FedAvg(), {"encoding__up": "topk"}),
        (FedAvg(), {"encoding__down": "int8"}),
        (FedAvg(), {"round__late_weight": 0.5}),
    ],
)
def test_what_goes_on_from_old_factors_is_not_given_turned_ones(
    strategy: Strategy, settings: Mapping[str, Any]
) -> None:
    asked = _plan(lora__aggregate="product", **settings)

    assert lora_rule(_plan(**settings), strategy).name == "fedavg"
    with pytest.raises(ConfigurationError, match=r"lora\.aggregate"):
        lora_rule(asked, strategy)


@pytest.mark.parametrize("local", ["scaffold", "feddyn"])
@pytest.mark.parametrize("setting", ["rank=4", "aggregate=freeze_a"])
def test_corrections_need_weights_that_are_trained_in_every_round(
    local: str, setting: str
) -> None:
    key, _, value = setting.partition("=")
    plan = _plan(**{f"lora__{key}": value}, local__name=local)

    with pytest.raises(ConfigurationError, match="keeps a correction of each"):
        chosen(plan)


def test_another_aggregation_says_nothing_of_means(tmp_path: Path) -> None:
    plan = _plan(aggregation__name="median")
    rounds = Averaging(tmp_path, FedAvg(), _site(0), rule=Median(), plan=plan)
    sites = [_site(seed) for seed in (1, 2, 3)]

    model = rounds.play(*((site, 1) for site in sites))

    name = f"{_Q}.lora_A.weight"
    expected = np.median([site[name] for site in sites], axis=0)
    np.testing.assert_array_equal(model[name], expected)
    assert rounds.lora is None


def test_a_plan_that_does_not_compose_says_so_before_a_site_has_come(
    tmp_path: Path,
) -> None:
    plan = _plan(lora__aggregate="product", encoding__up="topk")

    with pytest.raises(ConfigurationError, match=r"encoding\.up = 'topk': it adds"):
        Server(plan, folder=tmp_path)


@pytest.mark.parametrize("aggregate", ["freeze_a", "alternate", "share_a", "fedsvd"])
def test_unequal_ranks_share_no_factor(aggregate: str) -> None:
    with pytest.raises(ConfigurationError, match="leave one out"):
        _plan(lora__aggregate=aggregate, lora__rank=4)


def test_weights_that_cannot_be_multiplied_are_told_by_their_module(
    tmp_path: Path,
) -> None:
    rounds = Averaging(tmp_path, FedAvg(), _site(0, dtype=np.float64))
    huge = [_site(seed, scale=1e200, dtype=np.float64) for seed in (1, 2)]

    with pytest.raises(DivergedError, match="layers"):
        rounds.play((huge[0], 1), (huge[1], 1))
