"""A strategy and an aggregation that go together, and with the plan."""

import pytest

from flare_core import ConfigurationError, Plan
from flare_core.federation import AGGREGATIONS, STRATEGIES, FedAvg, Mean, chosen
from packages import Install


def test_federated_averaging_is_what_a_plan_names_that_names_nothing() -> None:
    assert chosen(Plan(rounds=1)) == (FedAvg(), Mean())


def _plan(*assignments: str) -> Plan:
    plan = Plan(rounds=1).with_setting("selection.sites=5")
    for assignment in assignments:
        plan = plan.with_setting(assignment)
    return plan


@pytest.mark.parametrize(
    ("assignments", "complaint"),
    [
        (["aggregation.name=krumm"], "no flare_core.aggregations plugin is called 'kr"),
        (["aggregation.name=fedavg"], "called 'fedavg'; installed: .*krum, mean, med"),
        (["aggregation.settings.f=1"], "aggregation 'mean': .* `f`; it has no settin"),
        (
            ["aggregation.name=norm_bounding"],
            "missing required field `most_norm`; its settings are most_norm, by_examp",
        ),
        (
            ["aggregation.name=krum", "aggregation.settings.hostile=0"],
            "'krum': .*>= 1 - at `aggregation.settings.hostile`; its settings are hos",
        ),
        (
            ["aggregation.name=krum", "aggregation.settings.hostile=2"],
            "'krum' needs at least 7 updates in each round, and in this plan 5 can be",
        ),
        (
            ["aggregation.name=krum", "selection.quorum=4"],
            "'krum' needs at least 5 updates in each round, and in this plan 4 can be",
        ),
        (
            ["aggregation={name='multi_krum', settings={chosen=6}}"],
            "'multi_krum' needs at least 6 updates",
        ),
        (
            ["aggregation={name='trimmed_mean', settings={hostile=3}}"],
            "'trimmed_mean' needs at least 7 updates",
        ),
        (
            ["aggregation.name=median", "strategy.name=fednova"],
            "does not weigh the updates .*strategy 'fednova', aggregation 'median'",
        ),
        (
            ["aggregation={name='geometric_median', settings={by_examples=true}}"],
            "let a site decide alone .* set admission.most_examples, or aggregation.s",
        ),
    ],
)
def test_what_does_not_go_together_is_named_with_what_does(
    assignments: list[str], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        chosen(_plan(*assignments))


@pytest.mark.parametrize(
    "assignments",
    [
        ["aggregation.name=krum"],
        ["aggregation={name='trimmed_mean', settings={hostile=2}}"],
        ["aggregation.name=median", "strategy.name=diloco"],
        ["strategy.name=fednova"],
        [
            "aggregation={name='geometric_median', settings={by_examples=true}}",
            "admission.most_examples=100",
        ],
    ],
)
def test_what_goes_together_is_taken(assignments: list[str]) -> None:
    plan = _plan(*assignments)

    strategy, rule = chosen(plan)

    assert strategy == STRATEGIES.of(plan.strategy)
    assert rule == AGGREGATIONS.of(plan.aggregation)


_FIRST = """
import flare_core


class First(flare_core.Aggregation, frozen=True):
    least = 2

    def share(self, cohort):
        return flare_core.Shares([1.0, *(0.0 for _ in cohort.updates[1:])])


Half = 0.5
"""


def test_an_aggregation_of_another_package_is_found(install: Install) -> None:
    install("flare_core.aggregations", _FIRST, first="First", half="Half")

    _, rule = chosen(_plan("aggregation.name=first"))

    assert type(rule).__name__ == "First"
    with pytest.raises(ConfigurationError, match=r"'half' is 0.5: expected a subclass"):
        chosen(_plan("aggregation.name=half"))
    with pytest.raises(ConfigurationError, match="needs at least 2 updates"):
        chosen(_plan("aggregation.name=first", "selection.quorum=1"))
