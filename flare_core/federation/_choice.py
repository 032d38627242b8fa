"""What a plan names, with its settings checked."""

from dataclasses import dataclass
from typing import Generic, TypeVar, cast, final

import msgspec

from flare_core._errors import ConfigurationError
from flare_core._local import FedDyn, Scaffold
from flare_core._plan import AggregationSettings, Plan, StrategySettings
from flare_core._plugins import plugin
from flare_core.federation._aggregation import Aggregation, Mean
from flare_core.federation._dynamic import FedDynMean
from flare_core.federation._strategy import Strategy

_T = TypeVar("_T", bound=msgspec.Struct)


@final
@dataclass(frozen=True, slots=True)
class Choice(Generic[_T]):
    """What one table of a plan may name: a class of settings, of any package.

    Attributes:
        table: The table, which is also what one of these is called.
        group: The entry points under which they are offered.
        base: The class that they are made from.
    """

    table: str
    group: str
    base: type[_T]

    def of(self, settings: StrategySettings | AggregationSettings) -> _T:
        """Return what a plan names.

        Raises:
            ConfigurationError: If it is not installed, is none, has no such setting, or
                a value does not fit.
        """
        kind = self.named(settings.name)
        try:
            return msgspec.convert(settings.settings, kind)
        except msgspec.ValidationError as exc:
            complaint = str(exc).replace("`$.", f"`{self.table}.settings.")
            msg = f"{self.table} {settings.name!r}: {complaint}; {_has(kind)}"
            raise ConfigurationError(msg) from None

    def named(self, name: str) -> type[_T]:
        """Return the class of that name.

        Raises:
            ConfigurationError: If it is not installed, or is none.
        """
        found = plugin(self.group, name)
        is_class = isinstance(found, type)
        if is_class and issubclass(cast("type[object]", found), self.base):
            return cast("type[_T]", found)
        msg = (
            f"the {self.group} plugin {name!r} is {found!r}: expected a subclass of "
            f"flare_core.{self.base.__name__}; was it made for another version of "
            "flare-adapters?"
        )
        raise ConfigurationError(msg)


STRATEGIES = Choice("strategy", "flare_core.strategies", Strategy)
AGGREGATIONS = Choice("aggregation", "flare_core.aggregations", Aggregation)


def chosen(plan: Plan) -> tuple[Strategy, Aggregation]:
    """Return the strategy and the aggregation that a plan names.

    FedDyn has a half at the server, which takes the place of the strategy.

    Raises:
        ConfigurationError: If one is not there, or they do not go with each other or
            with the rest of the plan.
    """
    strategy, rule = STRATEGIES.of(plan.strategy), AGGREGATIONS.of(plan.aggregation)
    if isinstance(plan.local, FedDyn):
        strategy = FedDynMean()
    complaint = "" if isinstance(rule, Mean) else _unfit(plan, strategy, rule)
    if complaint:
        msg = f"aggregation {plan.aggregation.name!r} {complaint}"
        raise ConfigurationError(msg)
    if plan.sealed and (strategy.moments or rule.follows):
        msg = (
            f"strategy {plan.strategy.name!r} with aggregation "
            f"{plan.aggregation.name!r} remembers something from round to round, and "
            "with topology.name = 'swarm' another site goes on each time: take a "
            "strategy without memory, such as fedavg, or another topology"
        )
        raise ConfigurationError(msg)
    return strategy, rule


def _unfit(plan: Plan, strategy: Strategy, rule: Aggregation) -> str:
    """Return what an aggregation has against a plan; empty if it is nothing."""
    if isinstance(plan.local, Scaffold | FedDyn):
        return (
            f"does not go with the plan's {plan.local}, which is right with the mean "
            "of all sites only: leave one of the two out"
        )
    if plan.by_region:
        return (
            "looks at each update, and topology.name = 'hierarchical' adds up those of "
            "a region: leave one of the two away"
        )
    least = plan.selection.least
    if least < rule.least:
        return (
            f"needs at least {rule.least} updates in each round, and in this plan "
            f"{least} can be enough: raise selection.sites, or selection.k or "
            "selection.quorum if that is set, or name one that takes fewer"
        )
    if _weighs(strategy):
        return (
            f"does not weigh the updates as strategy {plan.strategy.name!r} wants it: "
            "take another strategy, such as fedavg, or leave the table aggregation out"
        )
    if rule.trusts_examples and plan.admission.most_examples is None:
        return (
            "would let a site decide alone that says it has seen very many examples: "
            "set admission.most_examples, or aggregation.settings.by_examples = false"
        )
    return ""


def _weighs(strategy: Strategy) -> bool:
    kind = type(strategy)
    return kind.weight != Strategy.weight or kind.reach != Strategy.reach


def _has(kind: type[msgspec.Struct]) -> str:
    names = [field.name for field in msgspec.structs.fields(kind)]
    return f"its settings are {', '.join(names)}" if names else "it has no settings"
