"""What a site's policy allows, without a server."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

import flare_core as flare
from flare_core import Plan, Policy, PolicyError, Selection, Site
from flare_core.application._gate import Gate
from flare_core.application._policy import check_plan, check_tensors, matches
from flare_core.communication import pack

PLAN = Plan(rounds=5, selection=Selection(sites=4, quorum=3))
OTHER_PLAN = "0" * 64


def _site(**policy: object) -> Site:
    return Site(name="a", file="/s/site.toml", policy=msgspec.convert(policy, Policy))


def _layout(*names: str) -> flare.Layout:
    return flare.ModelState({name: np.zeros(2) for name in names}).layout


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"runs": ["tumour-*"]},
        {"runs": ["x", "*", "!secret-*"]},
        {"smallest_cohort": 3},
        {"most_rounds": 5},
        {"plans": [OTHER_PLAN, PLAN.fingerprint]},
    ],
)
def test_a_plan_that_breaks_no_rule_is_taken(policy: dict[str, object]) -> None:
    check_plan(_site(**policy), "tumour-7", PLAN)


@pytest.mark.parametrize(
    ("rule", "value", "expected", "got"),
    [
        ("runs", ["lung-*"], "fits 'lung-*'", "'tumour-7'"),
        ("runs", ["*", "!tumour-*"], "fits '*', '!tumour-*'", "'tumour-7'"),
        ("runs", [], "fits none", "'tumour-7'"),
        ("smallest_cohort", 4, "at least 4 updates", "rounds of 3"),
        ("privacy", "differential", "expected differential", "a plan without it"),
        ("privacy", "secure_aggregation", "secure_aggregation", "a plan without it"),
        ("most_rounds", 4, "at most 4 rounds", "a plan of 5"),
        ("plans", [OTHER_PLAN], f"one of {OTHER_PLAN}", PLAN.fingerprint),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused_by_the_rule_s_name(
    rule: str, value: object, expected: str, got: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        check_plan(_site(**{rule: value}), "tumour-7", PLAN)

    violation = caught.value.violation
    assert (violation.rule, violation.site) == (f"policy.{rule}", "a")
    said, _, came = str(caught.value).partition(", got ")
    assert said.startswith(f"site 'a': policy.{rule} in /s/site.toml: expected ")
    assert expected in said
    assert got in came
    assert violation.advice in came


def test_without_a_quorum_all_sites_are_the_cohort() -> None:
    plan = Plan(rounds=1, selection=Selection(sites=4))

    check_plan(_site(smallest_cohort=4), "r", plan)
    with pytest.raises(PolicyError):
        check_plan(_site(smallest_cohort=5), "r", plan)


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["*"], {"fc.weight", "fc.bias", "conv.weight"}),
        (["fc.*"], {"fc.weight", "fc.bias"}),
        (["*", "!*.bias"], {"fc.weight", "conv.weight"}),
        (["!*.bias", "*"], {"fc.weight", "fc.bias", "conv.weight"}),
        (["*", "!fc.*", "fc.bias"], {"fc.bias", "conv.weight"}),
        (["!fc.*"], set()),
        (["FC.*"], set()),
        ([], set()),
    ],
)
def test_the_last_glob_that_fits_decides(globs: list[str], names: set[str]) -> None:
    model = ("fc.weight", "fc.bias", "conv.weight")

    assert {name for name in model if matches(name, globs)} == names


def test_tensors_that_must_not_leave_are_named() -> None:
    site = _site(tensors=["*", "!head.*"])

    check_tensors(site, _layout("body", "neck"))
    with pytest.raises(PolicyError) as caught:
        check_tensors(site, _layout("body", *(f"head.{i}" for i in range(7))))

    assert caught.value.violation.rule == "policy.tensors"
    assert "'*', '!head.*', got 'head.0', 'head.1'" in str(caught.value)
    assert "'head.4', … 2 more;" in str(caught.value)
    assert "body" not in str(caught.value)


UPDATE = flare.ModelState({"w": np.zeros(10, np.float32)})
BODIES = {"w": pack(UPDATE)[1]}
"""Of 40 bytes."""


def _gate(folder: Path, run: str, most_bytes: int) -> Gate:
    policy = Policy(most_bytes=most_bytes)
    gate = Gate(Site(name="a", folder=str(folder), policy=policy))
    gate.take_part(run, PLAN)
    return gate


def test_the_budget_counts_the_bytes_of_all_rounds_of_a_run(tmp_path: Path) -> None:
    gate, other = _gate(tmp_path, "r", 100), _gate(tmp_path, "s", 100)
    gate.leaving(0, UPDATE.layout, BODIES)
    other.leaving(0, UPDATE.layout, BODIES)
    gate.leaving(1, UPDATE.layout, BODIES)

    with pytest.raises(PolicyError) as caught:
        gate.leaving(2, UPDATE.layout, BODIES)

    assert caught.value.violation.rule == "policy.most_bytes"
    assert "at most 100 bytes in one run, got 80 bytes that have left and 40 more" in (
        str(caught.value)
    )
    lines = (tmp_path / "manifest-a.jsonl").read_bytes().splitlines()
    assert len(lines) == 3


def test_the_budget_may_be_used_to_the_last_byte(tmp_path: Path) -> None:
    gate = _gate(tmp_path, "r", 80)

    gate.leaving(0, UPDATE.layout, BODIES)
    gate.leaving(1, UPDATE.layout, BODIES)


def test_the_budget_counts_on_when_the_script_is_started_again(tmp_path: Path) -> None:
    before = _gate(tmp_path, "r", 100)
    before.leaving(0, UPDATE.layout, BODIES)
    before.leaving(1, UPDATE.layout, BODIES)
    with (tmp_path / "manifest-a.jsonl").open("ab") as file:
        file.write(b'{"run":"r","by')  # power was lost before it left

    again = _gate(tmp_path, "r", 100)

    with pytest.raises(PolicyError, match="got 80 bytes that have left and 40 more"):
        again.leaving(2, UPDATE.layout, BODIES)


def test_without_its_count_nothing_leaves(tmp_path: Path) -> None:
    (tmp_path / "manifest-a.jsonl").write_bytes(b'{"run":"r","by\n')

    with pytest.raises(flare.ConfigurationError, match=r"manifest-a\.jsonl is damaged"):
        _gate(tmp_path, "r", 100)


def test_old_entries_that_name_no_run_count_for_none(tmp_path: Path) -> None:
    (tmp_path / "manifest-a.jsonl").write_bytes(b'{"round":0,"name":"w","bytes":99}\n')

    _gate(tmp_path, "r", 40).leaving(0, UPDATE.layout, BODIES)


def test_values_do_not_leave_under_another_layout_either(tmp_path: Path) -> None:
    gate = Gate(Site(name="a", folder=str(tmp_path), policy=Policy(tensors=("v",))))

    with pytest.raises(PolicyError):
        gate.leaving(0, UPDATE.layout, BODIES)

    assert not (tmp_path / "manifest-a.jsonl").exists()
