import copy
from typing import get_args

import pytest

import flare_core as flare
from flare_core._errors import Reason, refused


def _refusal(reason: Reason) -> flare.Refusal:
    return flare.Refusal(
        reason=reason,
        site="b",
        what="tensor 'w'",
        expected="F32 (2,)",
        got="F32 (3,)",
        advice="look at it",
    )


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("layout", flare.LayoutError),
        ("base", flare.BaseModelError),
        ("schedule", flare.ScheduleError),
        ("plan", flare.PlanError),
        ("update", flare.UpdateError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind_that_keeps_the_facts(
    reason: Reason, kind: type[flare.RefusedError]
) -> None:
    error = refused(_refusal(reason))

    assert type(error) is kind
    assert error.refusal == _refusal(reason)
    assert str(error) == (
        "site 'b': tensor 'w': expected F32 (2,), got F32 (3,); look at it"
    )


def test_there_is_an_error_for_every_reason() -> None:
    kinds = {type(refused(_refusal(reason))) for reason in get_args(Reason)}

    assert len(kinds) == len(get_args(Reason))


_VIOLATION = flare.Violation(
    rule="policy.runs",
    site="a",
    file="site.toml",
    expected="'x'",
    got="'y'",
    advice="add it",
)


def test_a_policy_error_says_which_rule_of_which_file() -> None:
    assert str(flare.PolicyError(_VIOLATION)) == (
        "site 'a': policy.runs in site.toml: expected 'x', got 'y'; add it"
    )


def _exported_errors() -> list[type[BaseException]]:
    exported = [getattr(flare, name) for name in flare.__all__]
    return [
        kind
        for kind in exported
        if isinstance(kind, type) and issubclass(kind, BaseException)
    ]


@pytest.mark.parametrize("kind", _exported_errors())
def test_every_error_is_under_one_root(kind: type[BaseException]) -> None:
    assert issubclass(kind, flare.FlareError | flare.PreflightPassed)


def test_a_passed_preflight_ends_a_script_without_an_error() -> None:
    with pytest.raises(SystemExit) as ended:
        raise flare.PreflightPassed(0)

    assert ended.value.code == 0
    assert not isinstance(ended.value, flare.FlareError)


def test_an_unreachable_server_is_named_with_the_wait() -> None:
    error = flare.ServerUnreachableError("tcp://10.0.0.1:5555", 2.5)

    assert (error.address, error.waited_s) == ("tcp://10.0.0.1:5555", 2.5)
    assert "no server answers at tcp://10.0.0.1:5555 (waited 2.5 s)" in str(error)
    assert "is its run not over" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        flare.ServerUnreachableError("tcp://x:1", 1.0),
        flare.PolicyError(_VIOLATION),
        refused(_refusal("layout")),
    ],
    ids=["unreachable", "policy", "refused"],
)
def test_an_error_can_be_copied_as_other_processes_do(error: flare.FlareError) -> None:
    copied = copy.copy(error)

    assert type(copied) is type(error)
    assert str(copied) == str(error)
