"""Each pair of the table is met, and named with its reason."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from flare_core import ConfigurationError, Plan
from flare_core._pairs import PLAN_PAIRS, Chosen, Pair, first
from flare_core._plan import plan_from
from flare_core.federation import LORA_PAIRS, PAIRS, Choices, FedAvg, chosen, lora_rule

_SCAFFOLD = {"local": {"name": "scaffold"}}
_FEDDYN = {"local": {"name": "feddyn"}}
_RANDOM = {"sites": 4, "choose": "random", "k": 2}
_TREES: tuple[Mapping[str, Any], ...] = (
    _SCAFFOLD | {"selection": {"newcomers": True}},
    _SCAFFOLD | {"round": {"late_weight": 0.5}},
    _FEDDYN | {"selection": _RANDOM},
    _FEDDYN | {"selection": {"sites": 4, "quorum": 3}},
    _FEDDYN | {"strategy": {"name": "fedadam"}},
    _FEDDYN | {"encoding": {"up": "int8"}},
    _FEDDYN | {"topology": {"name": "cyclic"}},
    {"topology": {"name": "cyclic"}, "selection": _RANDOM | {"k": 1}},
    {
        "topology": {"name": "cyclic"},
        "selection": _RANDOM | {"choose": "round_robin"},
    },
    {"topology": {"name": "cyclic"}, "selection": {"sites": 4, "quorum": 3}},
    {"topology": {"name": "cyclic"}, "round": {"late_weight": 0.5}},
    {"topology": {"name": "async", "buffer": 1}, "selection": _RANDOM},
    {
        "topology": {"name": "async", "buffer": 1},
        "selection": {"sites": 4, "quorum": 3},
    },
    {"topology": {"name": "async", "buffer": 1}, "round": {"deadline_s": 9}},
    {"topology": {"name": "async", "buffer": 1}, "round": {"grace_s": 1}},
    {"topology": {"name": "async", "buffer": 1}, "round": {"late_weight": 0.5}},
    {"topology": {"name": "hierarchical"}, "selection": _RANDOM},
    {"topology": {"name": "hierarchical"}, "round": {"deadline_s": 9}},
    {"topology": {"name": "hierarchical"}, "round": {"late_weight": 0.5}},
    {"topology": {"name": "hierarchical"}, "keep_updates": True},
    {"topology": {"name": "swarm"}, "keep_updates": True},
    {"topology": {"name": "swarm"}, "encoding": {"up": "int8"}},
    {"topology": {"name": "swarm"}, "encoding": {"down": "xor"}},
    {"topology": {"name": "swarm"}, "round": {"late_weight": 0.5}},
)
"""What each pair that a plan alone tells is made of, in the order of the table."""
_MEDIAN = {"aggregation": {"name": "median"}, "selection": {"sites": 4}}
_FAIR_LATER = {
    "strategy": {"name": "qfedavg", "settings": {"learning_rate": 0.1, "from_round": 1}}
}
_CHOICES: tuple[Mapping[str, Any], ...] = (
    _MEDIAN | _SCAFFOLD,
    _MEDIAN | {"topology": {"name": "hierarchical"}},
    _MEDIAN | {"strategy": {"name": "fednova"}},
    _FAIR_LATER | {"round": {"late_weight": 0.5}},
    {"topology": {"name": "swarm"}, "strategy": {"name": "fedadam"}},
    _SCAFFOLD | {"lora": {"rank": 4}},
)
"""Likewise, with a strategy or an aggregation."""
_LORA: tuple[Mapping[str, Any], ...] = (
    {"strategy": {"name": "fednova"}},
    _MEDIAN,
    _SCAFFOLD,
    {"encoding": {"up": "topk"}},
    {"encoding": {"down": "int8"}},
    {"round": {"late_weight": 0.5}},
    {"topology": {"name": "async", "buffer": 1}},
    {"topology": {"name": "hierarchical"}},
)
"""Likewise, of what changes how LoRA weights are combined."""


def _plan(tree: Mapping[str, Any]) -> Plan:
    return plan_from({"rounds": 3, **tree}, source="plan.toml")


def _each(
    pairs: Sequence[Pair[Any]], trees: Sequence[Mapping[str, Any]]
) -> Iterator[ParameterSet]:
    for pair, tree in zip(pairs, trees, strict=True):
        yield pytest.param(pair, tree, id=f"{pair.one} and {pair.other}")


@pytest.mark.parametrize(("pair", "tree"), list(_each(PLAN_PAIRS, _TREES)))
def test_a_pair_that_a_plan_tells_is_refused(
    pair: Pair[Chosen], tree: Mapping[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as error:
        _plan(tree)

    said = str(error.value)
    assert f"{pair.one} and {pair.other}" in said
    assert pair.why in said


@pytest.mark.parametrize(("pair", "tree"), list(_each(PAIRS, _CHOICES)))
def test_a_pair_with_a_strategy_is_refused(
    pair: Pair[Choices], tree: Mapping[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as error:
        chosen(_plan(tree))

    assert f"{pair.one} and {pair.other}" in str(error.value)
    assert pair.why in str(error.value)


@pytest.mark.parametrize(("pair", "tree"), list(_each(LORA_PAIRS, _LORA)))
def test_lora_weights_are_combined_in_another_way_which_is_said(
    pair: Pair[Choices], tree: Mapping[str, Any]
) -> None:
    plan = _plan(tree)
    strategy, _ = chosen(plan)

    rule = lora_rule(plan, strategy)

    assert (rule.name, rule.instead_of) == ("fedavg", f"{pair.other}: {pair.why}")
    with pytest.raises(ConfigurationError, match=r"lora\.aggregate = 'product'"):
        lora_rule(_plan({**tree, "lora": {"aggregate": "product"}}), strategy)


def test_nothing_is_against_a_plan_that_says_nothing() -> None:
    plan = _plan({})

    assert first(PAIRS, Choices(plan, FedAvg())) is None
    assert first(LORA_PAIRS, Choices(plan, FedAvg())) is None
