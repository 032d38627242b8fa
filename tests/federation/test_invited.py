from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_core import Selection
from flare_core._selection import Choose
from flare_core.federation import invited

_SITES = ("a", "b", "c", "d", "e")
_ROUNDS = 3_000


def _chosen(
    choose: Choose,
    number: int,
    *,
    k: int = 2,
    seed: int = 0,
    joined: tuple[str, ...] = _SITES,
    present: tuple[str, ...] = _SITES,
    sizes: dict[str, int] | None = None,
) -> set[str]:
    selection = Selection(sites=len(_SITES), choose=choose, k=k, seed=seed)
    return invited(selection, number, joined=joined, present=present, sizes=sizes or {})


def test_all_are_those_who_are_connected() -> None:
    everyone = Selection(sites=len(_SITES))

    found = invited(everyone, 3, joined=_SITES, present=("b", "c"), sizes={})

    assert found == {"b", "c"}


def test_a_draw_is_the_same_on_every_machine() -> None:
    drawn = ["".join(sorted(_chosen("random", number))) for number in range(8)]

    assert drawn == ["bc", "ab", "ab", "be", "bc", "be", "bc", "bd"]


def test_another_seed_draws_others() -> None:
    first = [_chosen("random", number) for number in range(8)]
    second = [_chosen("random", number, seed=1) for number in range(8)]

    assert first != second


@given(st.permutations(_SITES), st.integers(0, 99), st.sampled_from(["a", "c", "e"]))
def test_who_else_is_there_changes_the_draw_of_nobody_before_him(
    order: list[str], number: int, gone: str
) -> None:
    drawn = _chosen("random", number, joined=tuple(order))

    others = tuple(site for site in order if site != gone)
    without = _chosen("random", number, joined=others)

    assert drawn - {gone} <= without
    assert len(without) == 2


@pytest.mark.parametrize("choose", ["random", "available"])
def test_each_site_is_drawn_as_often_as_any_other(choose: Choose) -> None:
    times = Counter(
        site for number in range(_ROUNDS) for site in _chosen(choose, number)
    )

    expected = _ROUNDS * 2 / len(_SITES)
    assert times == {site: pytest.approx(expected, rel=0.1) for site in _SITES}


def test_a_draw_by_size_gives_each_site_the_chance_of_its_examples() -> None:
    sizes = {"a": 1, "b": 2, "c": 3, "d": 4}  # e is unknown: as the mean, 2.5

    times = Counter(
        site
        for number in range(_ROUNDS)
        for site in _chosen("by_size", number, k=1, sizes=sizes)
    )

    expected = {site: _ROUNDS * n / 12.5 for site, n in (sizes | {"e": 2.5}).items()}
    assert times == {n: pytest.approx(much, rel=0.15) for n, much in expected.items()}


def test_before_anybody_has_a_size_all_have_the_same() -> None:
    assert _chosen("by_size", 5) == _chosen("random", 5)


@given(st.permutations(_SITES), st.integers(0, 99))
def test_sites_take_turns(order: list[str], start: int) -> None:
    rounds = [
        _chosen("round_robin", start + number, joined=tuple(order))
        for number in range(len(_SITES))
    ]

    assert Counter(site for one in rounds for site in one) == dict.fromkeys(_SITES, 2)


@pytest.mark.parametrize("choose", ["random", "round_robin", "by_size"])
def test_who_is_gone_is_chosen_as_if_he_was_there(choose: Choose) -> None:
    for number in range(20):
        assert _chosen(choose, number, present=()) == _chosen(choose, number)


def test_of_the_available_nobody_is_chosen_who_is_gone() -> None:
    for number in range(20):
        assert _chosen("available", number, present=("b", "d", "e")) < {"b", "d", "e"}
    assert _chosen("available", 0, present=("b",)) == {"b"}
