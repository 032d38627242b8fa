from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from averaging import mean_of
from flare_core import ModelState
from flare_core._model import Array
from flare_core.federation import Fold, Round

SITES = ("a", "b", "c", "d", "e")
NUMBER = 7
LAYOUT = ModelState({"w": np.zeros(3)}).layout


class RoundMachine(RuleBasedStateMachine):
    """Whatever arrives, in whatever order, a round never counts a site twice."""

    @initialize(
        cohort=st.sets(st.sampled_from(SITES), min_size=1), quorum=st.integers(1, 5)
    )
    def invite(self, cohort: set[str], quorum: int) -> None:
        self.cohort = cohort
        self.quorum = quorum
        self.round = Round(NUMBER, cohort, quorum=quorum)
        self.accepted: dict[str, int] = {}
        self.lost: set[str] = set()

    @rule(
        site=st.sampled_from([*SITES, "stranger"]),
        number=st.integers(NUMBER - 1, NUMBER + 1),
        num_examples=st.integers(1, 9),
    )
    def arrive(self, site: str, number: int, num_examples: int) -> None:
        awaited = self.cohort - self.accepted.keys() - self.lost
        expected = site in awaited and number == NUMBER

        assert self.round.receive(site, number, num_examples) is expected

        if expected:
            self.accepted[site] = num_examples

    @rule(site=st.sampled_from([*SITES, "stranger"]))
    def go(self, site: str) -> None:
        self.round.lose(site)

        if site in self.cohort and site not in self.accepted:
            self.lost.add(site)

    @rule(site=st.sampled_from([*SITES, "stranger"]))
    def come(self, site: str) -> None:
        self.round.invite(site)

        self.cohort.add(site)
        self.lost.discard(site)

    @invariant()
    def all_before_the_first_who_is_missing_are_ready(self) -> None:
        missing = self.cohort - self.accepted.keys() - self.lost
        before_them = [s for s in self.accepted if s < min(missing, default="~")]
        assert self.round.ready == tuple(sorted(before_them))

    @invariant()
    def knows_who_is_missing(self) -> None:
        missing = self.cohort - self.accepted.keys() - self.lost
        assert self.round.missing == tuple(sorted(missing))
        assert self.round.cohort == tuple(sorted(self.cohort))

    @invariant()
    def counts_each_site_once(self) -> None:
        assert self.round.num_examples == self.accepted
        assert list(self.round.num_examples) == sorted(self.accepted)

    @invariant()
    def is_complete_or_short_of_sites_when_nobody_is_missing(self) -> None:
        enough = len(self.accepted) >= self.quorum
        assert self.round.complete is (enough and not self.round.missing)
        reachable = len(self.accepted) + len(self.round.missing)
        assert self.round.short_by == max(0, self.quorum - reachable)
        if not self.round.missing:
            assert self.round.complete is (self.round.short_by == 0)


TestRound = RoundMachine.TestCase


_MIXED = st.sampled_from([1e16, -1e16, 1.0, -1.0, 1e-8, 3e15, 0.1, 2.0**53])


@dataclass(frozen=True)
class _Update:
    site: str
    weights: ModelState
    num_examples: int


@st.composite
def _updates(draw: st.DrawFn) -> list[_Update]:
    """Updates of magnitudes so different that the order of a sum is seen in it."""
    return [
        _Update(
            site=site,
            weights=ModelState({"w": draw(st.tuples(_MIXED, _MIXED, _MIXED))}),
            num_examples=draw(st.integers(1, 1000)),
        )
        for site in SITES
    ]


class _Played:
    """A round whose updates are folded as soon as they are due."""

    def __init__(self, *cohort: str) -> None:
        self.round = Round(NUMBER, cohort, quorum=1)
        self._fold = Fold(LAYOUT)
        self._folded: list[str] = []
        self._updates: dict[str, _Update] = {}

    def receive(self, *updates: _Update) -> None:
        for update in updates:
            assert self.round.receive(update.site, NUMBER, update.num_examples)
            self._updates[update.site] = update
            self._go_on()

    def lose(self, site: str) -> None:
        self.round.lose(site)
        self._go_on()

    def mean(self) -> bytes:
        assert self.round.complete
        assert self._fold.tally.updates == len(self._updates)
        return mean_of(self._fold, LAYOUT)["w"].tobytes()

    def _go_on(self) -> None:
        ready = list(self.round.ready)
        if ready[: len(self._folded)] != self._folded:
            self._fold, self._folded = Fold(LAYOUT), []
        for site in ready[len(self._folded) :]:
            update = self._updates[site]
            self._fold.add(update.weights, update.num_examples)
        self._folded = ready


def _mean(arrivals: list[_Update]) -> bytes:
    played = _Played(*SITES)
    played.receive(*arrivals)
    return played.mean()


@given(_updates(), st.data())
def test_the_mean_does_not_depend_on_who_answers_first(
    updates: list[_Update], data: st.DataObject
) -> None:
    other_order = data.draw(st.permutations(updates))

    assert _mean(other_order) == _mean(updates)


@given(_updates(), st.data(), st.sampled_from(["0", "aa", "bb", "ee"]))
def test_the_mean_does_not_depend_on_when_a_site_is_lost(
    updates: list[_Update], data: st.DataObject, lost: str
) -> None:
    other_order = data.draw(st.permutations(updates))
    num_before = data.draw(st.integers(0, len(updates)))
    played = _Played(*SITES, lost)

    played.receive(*other_order[:num_before])
    played.lose(lost)
    played.receive(*other_order[num_before:])

    assert played.mean() == _mean(updates)


@given(_updates(), st.data())
def test_the_mean_does_not_depend_on_who_was_gone_meanwhile(
    updates: list[_Update], data: st.DataObject
) -> None:
    other_order = data.draw(st.permutations(updates))
    gone = data.draw(st.sampled_from(SITES))
    num_before = data.draw(st.integers(0, len(updates)))
    played = _Played(*SITES)

    played.lose(gone)
    for number, update in enumerate(other_order):
        if number == num_before or update.site == gone:
            played.round.invite(gone)
        played.receive(update)

    assert played.mean() == _mean(updates)


def test_the_order_of_a_sum_would_be_seen() -> None:
    values: Array = np.asarray([1e16, 1.0, -1e16])

    assert values[0] + values[1] + values[2] != values[0] + values[2] + values[1]


def test_an_update_waits_for_those_before_it_only() -> None:
    played = Round(NUMBER, "abc", quorum=1)

    played.receive("c", NUMBER, 1)
    played.receive("a", NUMBER, 1)

    assert list(played.ready) == ["a"]
    played.lose("b")
    assert list(played.ready) == ["a", "c"]


def test_a_second_update_does_not_replace_the_first() -> None:
    played = Round(NUMBER, "ab", quorum=2)
    played.receive("b", NUMBER, 1)

    assert not played.receive("b", NUMBER, 1000)

    played.receive("a", NUMBER, 1)
    assert played.ready == ("a", "b")
    assert played.num_examples == {"a": 1, "b": 1}


def test_an_update_that_came_before_its_site_was_lost_still_counts() -> None:
    played = Round(NUMBER, "ab", quorum=2)
    played.receive("b", NUMBER, 3)
    played.lose("b")
    played.receive("a", NUMBER, 3)

    assert played.complete
    assert played.ready == ("a", "b")


def test_the_cohort_is_in_the_order_of_names() -> None:
    assert Round(NUMBER, ["c", "a", "b"], quorum=1).cohort == ("a", "b", "c")
