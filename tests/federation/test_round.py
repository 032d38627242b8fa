from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from flare_core import ModelState, Update
from flare_core._model import Array
from flare_core.federation import Round

SITES = ("a", "b", "c", "d", "e")
NUMBER = 7
LAYOUT = ModelState({"w": np.zeros(3)}).layout


def _update(site: str, number: int = NUMBER, value: float = 1.0) -> Update:
    return Update(
        site=site,
        round_number=number,
        weights=ModelState({"w": np.full(3, value)}),
        num_examples=ord(site[0]),
    )


class RoundMachine(RuleBasedStateMachine):
    """Whatever arrives, in whatever order, a round never counts a site twice."""

    @initialize(
        cohort=st.sets(st.sampled_from(SITES), min_size=1), quorum=st.integers(1, 5)
    )
    def invite(self, cohort: set[str], quorum: int) -> None:
        self.cohort = cohort
        self.quorum = quorum
        self.round = Round(NUMBER, cohort, LAYOUT, quorum=quorum)
        self.accepted: dict[str, float] = {}
        self.lost: set[str] = set()

    @rule(
        site=st.sampled_from([*SITES, "stranger"]),
        number=st.integers(NUMBER - 1, NUMBER + 1),
        value=st.floats(-1, 1),
    )
    def arrive(self, site: str, number: int, value: float) -> None:
        awaited = self.cohort - self.accepted.keys() - self.lost
        expected = site in awaited and number == NUMBER

        assert self.round.receive(_update(site, number, value)) is expected

        if expected:
            self.accepted[site] = value

    @rule(site=st.sampled_from([*SITES, "stranger"]))
    def go(self, site: str) -> None:
        self.round.lose(site)

        if site in self.cohort and site not in self.accepted:
            self.lost.add(site)

    @invariant()
    def knows_who_is_missing(self) -> None:
        missing = self.cohort - self.accepted.keys() - self.lost
        assert self.round.missing == tuple(sorted(missing))

    @invariant()
    def counts_each_site_once(self) -> None:
        expected = {site: ord(site[0]) for site in sorted(self.accepted)}
        assert self.round.num_examples == expected
        assert list(self.round.num_examples) == sorted(self.accepted)

    @invariant()
    def is_complete_or_hopeless_when_nobody_is_missing(self) -> None:
        enough = len(self.accepted) >= self.quorum
        assert self.round.complete is (enough and not self.round.missing)
        reachable = len(self.accepted) + len(self.round.missing) >= self.quorum
        assert self.round.hopeless is not reachable
        if not self.round.missing:
            assert self.round.complete is not self.round.hopeless

    @precondition(lambda self: self.round.complete)
    @rule()
    def average(self) -> None:
        total = sum(ord(site[0]) for site in self.accepted)
        terms = [ord(site[0]) * value for site, value in self.accepted.items()]
        np.testing.assert_allclose(
            self.round.mean()["w"], [sum(terms) / total] * 3, atol=1e-12
        )

    @precondition(lambda self: not self.round.complete)
    @rule()
    def refuse_to_average(self) -> None:
        with pytest.raises(ValueError, match="round 7 is not complete"):
            self.round.mean()


TestRound = RoundMachine.TestCase


_MIXED = st.sampled_from([1e16, -1e16, 1.0, -1.0, 1e-8, 3e15, 0.1, 2.0**53])


@st.composite
def _updates(draw: st.DrawFn) -> list[Update]:
    """Updates of magnitudes so different that the order of a sum is seen in it."""
    return [
        Update(
            site=site,
            round_number=NUMBER,
            weights=ModelState({"w": draw(st.tuples(_MIXED, _MIXED, _MIXED))}),
            num_examples=draw(st.integers(1, 1000)),
        )
        for site in SITES
    ]


def _mean(arrivals: list[Update]) -> bytes:
    played = Round(NUMBER, SITES, LAYOUT, quorum=1)
    for update in arrivals:
        assert played.receive(update)
    return played.mean()["w"].tobytes()


@given(_updates(), st.data())
def test_the_mean_does_not_depend_on_who_answers_first(
    updates: list[Update], data: st.DataObject
) -> None:
    other_order = data.draw(st.permutations(updates))

    assert _mean(other_order) == _mean(updates)


@given(_updates(), st.data(), st.sampled_from(["0", "aa", "bb", "ee"]))
def test_the_mean_does_not_depend_on_when_a_site_is_lost(
    updates: list[Update], data: st.DataObject, lost: str
) -> None:
    other_order = data.draw(st.permutations(updates))
    num_before = data.draw(st.integers(0, len(updates)))
    played = Round(NUMBER, [*SITES, lost], LAYOUT, quorum=1)

    for update in other_order[:num_before]:
        played.receive(update)
    played.lose(lost)
    for update in other_order[num_before:]:
        played.receive(update)

    assert played.mean()["w"].tobytes() == _mean(updates)


def test_the_order_of_a_sum_would_be_seen() -> None:
    values: Array = np.asarray([1e16, 1.0, -1e16])

    assert values[0] + values[1] + values[2] != values[0] + values[2] + values[1]


def test_an_update_waits_for_those_before_it_only() -> None:
    played = Round(NUMBER, "abc", LAYOUT, quorum=1)

    played.receive(_update("c"))
    played.receive(_update("a"))

    assert list(played._waiting) == ["c"]


def test_a_second_update_does_not_replace_the_first() -> None:
    played = Round(NUMBER, "ab", LAYOUT, quorum=2)
    played.receive(_update("b", value=1.0))

    assert not played.receive(replace(_update("b", value=5.0), num_examples=1000))

    played.receive(_update("a", value=1.0))
    assert played.mean()["w"].tolist() == [1.0] * 3


def test_an_update_that_came_before_its_site_was_lost_still_counts() -> None:
    played = Round(NUMBER, "ab", LAYOUT, quorum=2)
    played.receive(_update("b", value=3.0))
    played.lose("b")
    played.receive(_update("a", value=3.0))

    assert played.complete
    assert played.mean()["w"].tolist() == [3.0] * 3


def test_the_cohort_is_in_the_order_of_names() -> None:
    assert Round(NUMBER, ["c", "a", "b"], LAYOUT, quorum=1).cohort == ("a", "b", "c")
