"""What in a plan does not go together, and why: the one table of it.

Here are the pairs that a plan alone tells; those that take a strategy or an
aggregation, which may be of another package, are in `flare_core.federation`.  The
documentation prints both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, Protocol, TypeVar, final

from flare_core._local import FedDyn, Local, Scaffold
from flare_core._round_policy import RoundPolicy
from flare_core._selection import Selection
from flare_core._topology import (
    Asynchronous,
    Cyclic,
    Hierarchical,
    Star,
    Swarm,
    Topology,
)

_T = TypeVar("_T")


class Chosen(Protocol):
    """What is looked at of a plan; `flare_core.Plan` says what it means."""

    @property
    def local(self) -> Local: ...
    @property
    def topology(self) -> Topology: ...
    @property
    def selection(self) -> Selection: ...
    @property
    def round(self) -> RoundPolicy: ...
    @property
    def keep_updates(self) -> bool: ...
    @property
    def encoding(self) -> Any: ...
    @property
    def has_strategy(self) -> bool: ...
    @property
    def by_region(self) -> bool: ...
    @property
    def sealed(self) -> bool: ...


@final
@dataclass(frozen=True, slots=True)
class Pair(Generic[_T]):
    """Two choices in a plan that exclude each other.

    Attributes:
        one: The first choice.
        other: The second one, or the key of a setting.
        why: What is against both.
        holds: Tells whether both were made.
        instead: What is done instead; empty if both are refused.
    """

    one: str
    other: str
    why: str
    holds: Callable[[_T], bool]
    instead: str = ""


def refuse(plan: Chosen) -> None:
    """Raise if a plan alone has choices that do not go together.

    Raises:
        ValueError: If so; both are named, and the value of a setting.
    """
    found = first(PLAN_PAIRS, plan)
    if found is not None:
        other = _with_value(plan, found.other)
        msg = (
            f"{found.one} and {other} do not go together: {found.why}; leave "
            f"{found.other} away, or take another one"
        )
        raise ValueError(msg)


def first(pairs: Iterable[Pair[_T]], choices: _T) -> Pair[_T] | None:
    """Return the first pair that was chosen; None if none was."""
    return next((pair for pair in pairs if pair.holds(choices)), None)


def _with_value(plan: Chosen, key: str) -> str:
    try:
        value: object = reduce(getattr, key.split("."), plan)
    except AttributeError:  # it is no key
        return key
    return f"{key} = {value!r}"


def _corrects(plan: Chosen) -> bool:
    return isinstance(plan.local, Scaffold | FedDyn)


def _is(kind: type[object]) -> Callable[[Chosen], bool]:
    return lambda plan: isinstance(plan.topology, kind)


def _both(
    one: Callable[[Chosen], bool], other: Callable[[Chosen], bool]
) -> Callable[[Chosen], bool]:
    return lambda plan: one(plan) and other(plan)


def _chooses(plan: Chosen) -> bool:
    return plan.selection.choose != "all"


def _is_late(plan: Chosen) -> bool:
    return plan.round.late_weight is not None


def _has_deadline(plan: Chosen) -> bool:
    return plan.round.deadline_s is not None


_CORRECTION = "local.name = 'scaffold' or 'feddyn'"
_CYCLIC = "topology.name = 'cyclic'"
_ASYNC = "topology.name = 'async'"
_HIERARCHICAL = "topology.name = 'hierarchical'"
_SWARM = "topology.name = 'swarm'"
_FIXED = (
    "what it adds up is of a fixed number of sites, each in the round that it trained"
)
_ONE = "a round is of one site, whose turn it is"
_NOBODY_WAITS = "nobody waits for anybody"
_BY_REGION = "regions take part in each round, and wait for their own sites"
_SEALED = "the server cannot read what is exchanged"
_IN_TURN = _is(Cyclic)
_AT_ANY_TIME = _is(Asynchronous)

PLAN_PAIRS: tuple[Pair[Chosen], ...] = (
    Pair(
        _CORRECTION,
        "selection.newcomers",
        _FIXED,
        lambda plan: _corrects(plan) and plan.selection.newcomers,
    ),
    Pair(_CORRECTION, "round.late_weight", _FIXED, _both(_corrects, _is_late)),
    Pair(
        "local.name = 'feddyn'",
        "selection.k",
        _FIXED,
        lambda plan: (
            isinstance(plan.local, FedDyn)
            and plan.selection.largest < plan.selection.sites
        ),
    ),
    Pair(
        "local.name = 'feddyn'",
        "selection.quorum",
        _FIXED,
        lambda plan: (
            isinstance(plan.local, FedDyn)
            and plan.selection.least < plan.selection.largest
        ),
    ),
    Pair(
        "local.name = 'feddyn'",
        "strategy.name",
        "it has a half at the server, in the place of a strategy",
        lambda plan: isinstance(plan.local, FedDyn) and plan.has_strategy,
    ),
    Pair(
        "local.name = 'feddyn'",
        "encoding.up",
        "the server adds up what arrives and the sites what they sent: what is rounded "
        "on the way would part them for good",
        lambda plan: (
            isinstance(plan.local, FedDyn) and plan.encoding.up not in {"none", "xor"}
        ),
    ),
    Pair(
        _CORRECTION,
        "another topology than 'star'",
        "it corrects steps that sites take at the same time, from the same model",
        lambda plan: _corrects(plan) and not isinstance(plan.topology, Star),
    ),
    Pair(
        _CYCLIC,
        "selection.choose",
        _ONE,
        lambda plan: (
            _IN_TURN(plan) and plan.selection.choose not in {"all", "round_robin"}
        ),
    ),
    Pair(
        _CYCLIC,
        "selection.k",
        _ONE,
        lambda plan: _IN_TURN(plan) and plan.selection.k not in {None, 1},
    ),
    Pair(
        _CYCLIC,
        "selection.quorum",
        _ONE,
        lambda plan: _IN_TURN(plan) and plan.selection.quorum not in {None, 1},
    ),
    Pair(_CYCLIC, "round.late_weight", _ONE, _both(_IN_TURN, _is_late)),
    Pair(_ASYNC, "selection.choose", _NOBODY_WAITS, _both(_AT_ANY_TIME, _chooses)),
    Pair(
        _ASYNC,
        "selection.quorum",
        "a round ends with as many updates as the buffer has",
        lambda plan: (
            isinstance(plan.topology, Asynchronous)
            and plan.selection.quorum not in {None, plan.topology.buffer}
        ),
    ),
    Pair(_ASYNC, "round.deadline_s", _NOBODY_WAITS, _both(_AT_ANY_TIME, _has_deadline)),
    Pair(
        _ASYNC,
        "round.grace_s",
        _NOBODY_WAITS,
        lambda plan: _AT_ANY_TIME(plan) and plan.round.grace_s not in {None, 0},
    ),
    Pair(
        _ASYNC,
        "round.late_weight",
        "late updates count by topology.most_staleness",
        _both(_AT_ANY_TIME, _is_late),
    ),
    Pair(
        _HIERARCHICAL,
        "selection.choose",
        _BY_REGION,
        _both(_is(Hierarchical), _chooses),
    ),
    Pair(
        _HIERARCHICAL,
        "round.deadline_s",
        _BY_REGION,
        _both(_is(Hierarchical), _has_deadline),
    ),
    Pair(
        _HIERARCHICAL,
        "round.late_weight",
        _BY_REGION,
        _both(_is(Hierarchical), _is_late),
    ),
    Pair(
        _HIERARCHICAL,
        "keep_updates",
        "the server gets the sum of a region's updates",
        lambda plan: plan.by_region and plan.keep_updates,
    ),
    Pair(
        _SWARM, "keep_updates", _SEALED, lambda plan: plan.sealed and plan.keep_updates
    ),
    Pair(
        _SWARM,
        "encoding.up",
        _SEALED,
        lambda plan: plan.sealed and plan.encoding.up != "none",
    ),
    Pair(
        _SWARM,
        "encoding.down",
        _SEALED,
        lambda plan: plan.sealed and plan.encoding.down != "none",
    ),
    Pair(_SWARM, "round.late_weight", _SEALED, _both(_is(Swarm), _is_late)),
)
