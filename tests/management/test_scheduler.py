"""Which runs start now: GPUs are given once, and what fits does not starve."""

from collections.abc import Mapping
from itertools import chain

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

from flare_core import Binding, Policy, Resources, Site
from flare_core.management._scheduler import (
    Decision,
    Hold,
    Start,
    Tried,
    bound,
    schedule,
)

TRAIN = ("train.py",)


def _site(
    needs: Mapping[str, int], *, gpus: int = 0, slots: int = 1, runs: str = "*"
) -> Site:
    return Site(
        name="a",
        file="site.toml",
        policy=Policy(runs=(runs,)),
        resources=Resources(gpus=tuple(map(str, range(gpus))), concurrent_runs=slots),
        runs={
            glob: Binding(command=TRAIN, gpus=count) for glob, count in needs.items()
        },
    )


def _decide(site: Site, *awaiting: str) -> list[Decision]:
    return schedule(site, awaiting, running={}, tried={})


class Machine(RuleBasedStateMachine):
    """Whatever comes and ends, and whenever: nothing is given twice, or for ever."""

    @initialize(gpus=st.integers(0, 4), slots=st.integers(1, 4))
    def declare(self, gpus: int, slots: int) -> None:
        self.site = _site(
            {f"g{need}-*": need for need in range(gpus + 1)}, gpus=gpus, slots=slots
        )
        self.waiting: list[str] = []
        self.running: dict[str, tuple[str, ...]] = {}
        self.count = 0

    @rule(need=st.integers(0, 4))
    def come(self, need: int) -> None:
        self.count += 1
        run = f"g{min(need, len(self.site.resources.gpus))}-{self.count}"
        self.waiting.append(run)
        self._start()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        del self.running[data.draw(st.sampled_from(sorted(self.running)))]
        self._start()

    def _start(self) -> None:
        before = dict(self.running)
        for decision in schedule(self.site, self.waiting, running=before, tried={}):
            if isinstance(decision, Start):
                assert len(decision.gpus) == decision.binding.gpus
                assert decision.run not in self.running
                self.running[decision.run] = decision.gpus
                self.waiting.remove(decision.run)

    @invariant()
    def no_gpu_is_given_twice_and_none_that_is_not_declared(self) -> None:
        given = list(chain.from_iterable(self.running.values()))

        assert len(given) == len(set(given))
        assert set(given) <= set(self.site.resources.gpus)

    @invariant()
    def no_more_run_than_may(self) -> None:
        assert len(self.running) <= self.site.resources.concurrent_runs

    @invariant()
    def the_oldest_that_waits_does_not_fit(self) -> None:
        if not self.waiting:
            return
        need = int(self.waiting[0][1])
        taken = sum(map(len, self.running.values()))
        free = len(self.site.resources.gpus) - taken
        full = len(self.running) == self.site.resources.concurrent_runs

        assert full or need > free

    @invariant()
    def what_needs_no_gpu_waits_for_a_slot_only(self) -> None:
        if any(run.startswith("g0") for run in self.waiting):
            assert len(self.running) == self.site.resources.concurrent_runs


TestMachine = Machine.TestCase


@given(gpus=st.integers(1, 3), slots=st.integers(1, 3), data=st.data())
def test_a_run_that_fits_starts_however_many_come_after_it(
    gpus: int, slots: int, data: st.DataObject
) -> None:
    site = _site(
        {f"g{need}-*": need for need in range(gpus + 1)}, gpus=gpus, slots=slots
    )
    need = st.integers(0, 1)
    first = f"g{gpus}-first"
    running: dict[str, tuple[str, ...]] = {}
    _step(site, [f"g{data.draw(need)}-{number}" for number in range(slots)], running)
    waiting = [first]

    for number in range(slots + 1):
        _step(site, waiting, running)
        if first in running:
            return
        del running[next(iter(running))]  # the one that has run longest
        waiting.append(f"g{data.draw(need)}-later{number}")

    pytest.fail(f"{first} waits for ever beside {running}")


def _step(site: Site, waiting: list[str], running: dict[str, tuple[str, ...]]) -> None:
    for decision in schedule(site, waiting, running=dict(running), tried={}):
        if isinstance(decision, Start):
            running[decision.run] = decision.gpus
            waiting.remove(decision.run)


def test_free_gpus_are_kept_for_the_oldest_run_that_waits_for_more() -> None:
    site = _site({"big": 2, "small": 1, "none": 0}, gpus=2, slots=4)

    held_big, held_small, started = schedule(
        site,
        ["big", "small", "none"],
        running={"other": ("0",)},
        tried={},
    )

    assert isinstance(held_big, Hold)
    assert isinstance(held_small, Hold)
    assert held_big.words == "waits for 2 GPUs: 1 of 2 free"
    assert held_small.words == "waits for 1 GPU: 1 of 2 free, kept for run big"
    assert isinstance(started, Start)
    assert started.gpus == ()


def test_a_run_waits_for_a_slot() -> None:
    first, second = _decide(_site({"*": 0}), "x", "y")

    assert isinstance(first, Start)
    assert second == Hold(
        "y", "slot", "waits for a free slot: resources.concurrent_runs is 1"
    )


def test_a_gpu_that_is_not_declared_any_more_is_not_given() -> None:
    site = _site({"*": 1}, gpus=1, slots=3)

    (held,) = schedule(site, ["x"], running={"y": ("0",), "z": ("1",)}, tried={})

    assert isinstance(held, Hold)


def test_the_policy_goes_before_the_binding() -> None:
    (held,) = _decide(_site({"*": 0}, runs="heart-*"), "lung")

    assert isinstance(held, Hold)
    assert held.why == "policy"
    assert "policy.runs in site.toml" in held.words


def test_what_is_not_bound_says_what_to_add() -> None:
    (held,) = _decide(_site({"heart": 0}), "lung")

    assert isinstance(held, Hold)
    assert held.why == "not bound"
    assert '[runs."lung"]  command = ["train.py"]' in held.words


@pytest.mark.parametrize(
    ("run", "glob"),
    [
        ("heart-1", "heart-1"),
        ("heart-2", "heart-*"),
        ("heart-10", "heart-1?"),
        ("hear", "h*"),
        ("lung", "*"),
        ("h[1]", "h[1]"),
    ],
)
def test_the_most_specific_binding_counts(run: str, glob: str) -> None:
    globs = ["*", "h*", "heart-*", "heart-1?", "heart-1", "h[1]"]

    found = bound(_site(dict.fromkeys(globs, 0)), run)

    assert found is not None
    assert found[0] == glob


def test_of_two_globs_of_one_length_the_first_counts() -> None:
    found = bound(_site({"heart-*": 0, "*-heart": 0}), "heart-heart")

    assert found is not None
    assert found[0] == "heart-*"


@pytest.mark.parametrize(
    ("restarts", "times", "failed", "starts"),
    [
        (0, 1, True, False),
        (1, 1, True, True),
        (1, 2, True, False),
        (2, 2, True, True),
        (2, 1, False, False),
    ],
)
def test_a_command_is_started_again_if_it_failed_and_may(
    restarts: int,
    times: int,
    failed: bool,  # noqa: FBT001 - pytest's
    starts: bool,  # noqa: FBT001
) -> None:
    binding = Binding(command=TRAIN, restarts=restarts)
    site = Site(name="a", runs={"x": binding})
    tried = Tried(
        binding=binding, times=times, failed=failed, words="ended with code 1"
    )

    (decision,) = schedule(site, ["x"], running={}, tried={"x": tried})

    assert isinstance(decision, Start) is starts


def test_a_binding_that_was_changed_is_tried_anew() -> None:
    before = Binding(command=("trian.py",))
    site = Site(name="a", runs={"x": Binding(command=TRAIN)})
    tried = Tried(binding=before, times=1, failed=True, words="ended with code 1")

    (decision,) = schedule(site, ["x"], running={}, tried={"x": tried})

    assert isinstance(decision, Start)


def test_a_run_that_is_running_is_not_started_again() -> None:
    site = _site({"*": 0}, slots=2)

    assert not schedule(site, ["x", "x"], running={"x": ()}, tried={})
    assert len(_decide(site, "y", "y")) == 1
