from typing import Any

import msgspec
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from flare_core import (
    AggregationSettings,
    Asynchronous,
    ConfigurationError,
    Cyclic,
    FedDyn,
    FedProx,
    Local,
    Plain,
    Plan,
    Scaffold,
    Schedule,
    Selection,
    Star,
    Stop,
    StrategySettings,
    Topology,
)
from flare_core._plan import plan_from
from flare_core._selection import Choose


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("rounds=7", Plan(rounds=7)),
        (" rounds = 7 ", Plan(rounds=7)),
        ("local.name=fedprox", Plan(rounds=3, local=FedProx(mu=0.01))),
        ('local={name="fedprox", mu=1}', Plan(rounds=3, local=FedProx(mu=1.0))),
        (
            "strategy.settings.rate=0.1",
            Plan(rounds=3, strategy=StrategySettings(settings={"rate": 0.1})),
        ),
        ("strategy.name=lion", Plan(rounds=3, strategy=StrategySettings(name="lion"))),
        (
            "aggregation.settings.hostile=2",
            Plan(rounds=3, aggregation=AggregationSettings(settings={"hostile": 2})),
        ),
        ("selection.sites=4", Plan(rounds=3, selection=Selection(sites=4))),
        (
            "schedule.every_n_steps=5",
            Plan(rounds=3, schedule=Schedule(every_n_steps=5)),
        ),
        ("select=trainable", Plan(rounds=3, select="trainable")),
        ('select=["a.*", "b"]', Plan(rounds=3, select=["a.*", "b"])),
        ("select=layer=1", Plan(rounds=3, select="layer=1")),
        ("optimizer_state=reset", Plan(rounds=3, optimizer_state="reset")),
    ],
)
def test_one_setting_can_be_changed(assignment: str, expected: Plan) -> None:
    assert Plan(rounds=3).with_setting(assignment) == expected


def test_a_change_leaves_the_rest_and_the_plan_it_came_from() -> None:
    plan = Plan(rounds=3, selection=Selection(sites=4, quorum=2), select=["x"])

    changed = plan.with_setting("local.name=fedprox")

    assert changed.selection == plan.selection
    assert changed.select == ["x"]
    assert plan.local == Plain()


@pytest.mark.parametrize(
    ("assignment", "what"),
    [
        ("rounds", "expected key=value"),
        ("nodes=3", "unknown field `nodes`"),
        ("strategy.nu=1", "unknown field `nu` - at `$.strategy`; a plan has rounds"),
        ("strategy.nu=1", "strategy.settings, local.name, local.mu, "),
        ("strategies.mu=1", "no table 'strategies'"),
        ("rounds.x=1", "no table 'rounds'"),
        ("strategy.name.x=1", "no table 'name'"),
        ("=1", "unknown field ``"),
        ("rounds=many", "Expected `int`, got `str` - at `$.rounds`"),
        ("rounds=1.5", "Expected `int`, got `float`"),
        ("rounds=0", "`int` >= 1 - at `$.rounds`"),
        ("rounds=", "Expected `int`"),
        ('local={name="fedprox", mu=-1}', ">= 0.0 - at `$.local.mu`"),
        ("local.name=fedpox", "Invalid value 'fedpox' - at `$.local.name`; possible"),
        ("local.name=fedpox", "possible are none, fedprox"),
        ("local.mu=1", "unknown field `mu` - at `$.local`"),
        ("strategy.settings.rate=[1]", "at `$.strategy.settings[...]`"),
        ("strategy.name=fedprox", "into the table [local], as local.name; possible"),
        ("strategy.name=scaffold", "possible there are none, fedprox"),
        ("strategy=fedavg", "Expected `object`, got `str` - at `$.strategy`"),
        ("optimizer_state=drop", "Invalid enum value 'drop'"),
        ("optimizer_state=drop", "possible are keep, reset"),
        ("encoding.up=int9", "possible are none, bf16, int8, int4, topk, xor"),
        ("encoding.down=topk", "possible are none, bf16, int8, int4, xor"),
        ("encoding.keep=0.5", "<= 0.3 - at `$.encoding.keep`"),
        ("select=3", "at `$.select`"),
        ("selection.quorum=2", "quorum = 2 can never be met by sites = 1"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(assignment: str, what: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Plan(rounds=3).with_setting(assignment)

    assert str(error.value).startswith(f"--set {assignment}: ")
    assert what in str(error.value)


def test_another_name_in_the_table_local_forgets_the_settings_of_the_one_before() -> (
    None
):
    pulled = Plan(rounds=3, local=FedProx(mu=0.5))

    assert pulled.with_setting("local.name=none").local == Plain()
    assert pulled.with_setting("local.mu=0.25").local == FedProx(mu=0.25)


def test_rounds_are_cut_by_epochs_or_steps_and_not_both() -> None:
    with pytest.raises(ValueError, match="not both"):
        Schedule(every_n_epochs=1, every_n_steps=1)
    with pytest.raises(ConfigurationError, match="not both"):
        plan_from(
            {"rounds": 1, "schedule": {"every_n_epochs": 1, "every_n_steps": 1}},
            source="plan.toml",
        )


@pytest.mark.parametrize(
    ("schedule", "length", "unit", "words"),
    [
        (Schedule(every_n_epochs=2), 2, "epochs", "every_n_epochs = 2"),
        (Schedule(every_n_steps=50), 50, "steps", "every_n_steps = 50"),
    ],
)
def test_a_schedule_has_a_length(
    schedule: Schedule, length: int, unit: str, words: str
) -> None:
    assert schedule.given
    assert (schedule.length, schedule.unit, str(schedule)) == (length, unit, words)


def test_a_schedule_that_says_nothing_has_none() -> None:
    schedule = Schedule()

    assert not schedule.given
    assert str(schedule) == "rounds of the script's own"
    with pytest.raises(ValueError, match="has no length"):
        _ = schedule.length


def test_a_quorum_cannot_exceed_the_sites() -> None:
    with pytest.raises(ValueError, match="quorum = 3 can never be met by sites = 2"):
        Selection(sites=2, quorum=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 2}, "k = 2 sites are to be chosen: say how, with choose"),
        ({"choose": "random"}, "choose = 'random': say how many sites, with k"),
        ({"choose": "random", "k": 5}, "k = 5 can never be chosen from sites = 4"),
        (
            {"choose": "random", "k": 2, "quorum": 3},
            "quorum = 3 can never be met by k = 2",
        ),
    ],
)
def test_a_cohort_that_cannot_be_is_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Selection(sites=4, **settings)


def test_sites_that_train_in_turn_are_one_in_each_round() -> None:
    plan = Plan(rounds=3, topology=Cyclic(), selection=Selection(sites=4))

    assert (plan.selection.k, plan.selection.choose) == (1, "round_robin")
    assert plan_from(msgspec.to_builtins(plan), source="plan.toml") == plan
    star = plan.with_setting("topology.pass_on=true").with_setting("topology.name=star")
    assert star.topology == Star()


_RANDOM = {"sites": 4, "choose": "random", "k": 1}


@pytest.mark.parametrize(
    ("topology", "setting", "given"),
    [
        ("cyclic", "selection.choose = 'random'", {"selection": _RANDOM}),
        (
            "cyclic",
            "selection.k = 2",
            {"selection": {"sites": 4, "choose": "round_robin", "k": 2}},
        ),
        ("cyclic", "selection.quorum = 3", {"selection": {"sites": 4, "quorum": 3}}),
        ("cyclic", "round.late_weight = 0.5", {"round": {"late_weight": 0.5}}),
        ("async", "selection.choose = 'random'", {"selection": _RANDOM}),
        ("async", "selection.quorum = 3", {"selection": {"sites": 4, "quorum": 3}}),
        ("async", "round.deadline_s = 9.0", {"round": {"deadline_s": 9}}),
        ("async", "round.grace_s = 1.0", {"round": {"grace_s": 1}}),
        ("async", "round.late_weight = 0.5", {"round": {"late_weight": 0.5}}),
    ],
)
def test_what_makes_no_sense_in_a_topology_is_refused(
    topology: str, setting: str, given: dict[str, Any]
) -> None:
    settings = {"buffer": 1} if topology == "async" else {}
    tree = {"rounds": 3, "topology": {"name": topology} | settings} | given

    with pytest.raises(ConfigurationError) as error:
        plan_from(tree, source="plan.toml")

    words = f"topology.name = {topology!r} and {setting} do not go together"
    assert words in str(error.value)


@pytest.mark.parametrize("topology", [Cyclic(), Asynchronous(buffer=1)])
@pytest.mark.parametrize("local", [Scaffold(), FedDyn()])
def test_what_corrects_steps_that_are_taken_together_needs_a_star(
    topology: Topology, local: Local
) -> None:
    with pytest.raises(ValueError, match="that sites take at the same time"):
        Plan(rounds=3, topology=topology, local=local)


def test_an_asynchronous_round_is_one_buffer() -> None:
    plan = Plan(rounds=3, topology=Asynchronous(buffer=2), selection=Selection(sites=4))

    assert (plan.selection.least, plan.round.grace_s) == (2, 0)
    assert plan_from(msgspec.to_builtins(plan), source="plan.toml") == plan
    with pytest.raises(ValueError, match="buffer = 5 can never be filled by"):
        Plan(rounds=3, topology=Asynchronous(buffer=5), selection=Selection(sites=4))


@pytest.mark.parametrize("topology", [Cyclic(), Asynchronous(buffer=2)])
def test_another_topology_forgets_what_followed_from_the_one_before(
    topology: Topology,
) -> None:
    plan = Plan(rounds=3, topology=topology, selection=Selection(sites=4))

    star = plan.with_setting("topology.name=star")

    assert star == Plan(rounds=3, selection=Selection(sites=4))


def test_feddyn_needs_all_sites_in_every_round() -> None:
    some = Selection(sites=4, choose="random", k=3)

    with pytest.raises(
        ValueError, match=r"'feddyn' and selection\.k = 3 do not go together"
    ):
        Plan(rounds=3, local=FedDyn(), selection=some)

    assert Plan(rounds=3, local=Scaffold(), selection=some).selection == some


def test_settings_that_need_each_other_may_come_in_any_order() -> None:
    plan = Plan(rounds=3, selection=Selection(sites=4))

    changed = plan.with_setting("selection.k=2", "selection.choose=by_size")

    assert changed.selection == Selection(sites=4, k=2, choose="by_size")
    assert plan.with_setting() == plan


@pytest.mark.parametrize(("quorum", "least"), [(None, 4), (1, 1), (4, 4)])
def test_without_a_quorum_all_sites_are_needed(quorum: int | None, least: int) -> None:
    assert Selection(sites=4, quorum=quorum).least == least


def test_without_a_quorum_the_whole_cohort_is_needed() -> None:
    assert Selection(sites=4, choose="random", k=3).least == 3


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({}, "missing required field `rounds`"),
        ({"rounds": 1, "node": 2}, "unknown field `node`"),
        ({"rounds": 1, "schedule": {"every_n_batches": 2}}, "`every_n_batches`"),
        ([], "Expected `object`"),
    ],
)
def test_a_plan_that_is_none_is_named_by_its_source(tree: object, what: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        plan_from(tree, source="plan.toml")

    assert str(error.value).startswith("plan.toml: ")
    assert what in str(error.value)


_COUNT = st.integers(1, 10**6)
_VALUE = st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text()
_SETTINGS = st.dictionaries(st.text(), _VALUE, max_size=3)


_STOPS = st.builds(
    Stop,
    metric=st.text(min_size=1),
    mode=st.sampled_from(["min", "max"]),
    patience=st.none() | _COUNT,
    target=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


_SOME: st.SearchStrategy[Choose] = st.sampled_from(
    ["random", "round_robin", "by_size", "available"]
)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    sites = draw(_COUNT)
    k = draw(st.none() | st.integers(1, sites))
    unit = draw(st.sampled_from(["every_n_epochs", "every_n_steps"]))
    schedule = {unit: draw(_COUNT)} if draw(st.booleans()) else {}
    return Plan(
        rounds=draw(_COUNT),
        schedule=Schedule(**schedule),
        aggregation=AggregationSettings(settings=draw(_SETTINGS)),
        strategy=StrategySettings(settings=draw(_SETTINGS)),
        local=draw(st.builds(Plain) | st.builds(FedProx, mu=st.floats(0, 10))),
        selection=Selection(
            sites=sites,
            quorum=draw(st.none() | st.integers(1, k or sites)),
            choose="all" if k is None else draw(_SOME),
            k=k,
            seed=draw(st.integers(-9, 9)),
        ),
        stop=draw(_STOPS),
        select=draw(st.none() | st.text() | st.lists(st.text(), max_size=3)),
        optimizer_state=draw(st.sampled_from([None, "keep", "reset"])),
    )


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


@given(_plans())
def test_a_plan_survives_its_file(plan: Plan) -> None:
    file = tomli_w.dumps(_without_none(msgspec.to_builtins(plan)))

    assert plan_from(msgspec.toml.decode(file), source="plan.toml") == plan


@pytest.mark.parametrize(
    "assignment",
    [
        "rounds=4",
        "local.name=fedprox",
        "strategy.settings.a=1",
        "aggregation.name=median",
        "select=all",
    ],
)
def test_another_plan_has_another_fingerprint(assignment: str) -> None:
    plan = Plan(rounds=3)

    assert plan.with_setting(assignment).fingerprint != plan.fingerprint


def test_a_fingerprint_does_not_depend_on_how_the_plan_was_written() -> None:
    said = StrategySettings(name="fedavg", settings={})

    assert Plan(rounds=3, strategy=said).fingerprint == Plan(rounds=3).fingerprint


def test_the_fingerprint_of_a_plan_is_what_it_was() -> None:
    """Site files name it, so that it must not change unseen."""
    expected = "f2f51bf3609c37a566a52ef9464fcddd6902f422d3a4be5cc196ad90fd2a6775"
    assert Plan(rounds=3).fingerprint == expected
