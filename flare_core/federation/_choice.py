"""What a plan names, with its settings checked."""

from dataclasses import dataclass
from typing import Generic, TypeVar, cast, final

import msgspec

from flare_core._errors import ConfigurationError
from flare_core._local import FedDyn
from flare_core._pairs import first
from flare_core._plan import AggregationSettings, Plan, StrategySettings
from flare_core._plugins import plugin
from flare_core.federation._aggregation import Aggregation
from flare_core.federation._dynamic import FedDynMean
from flare_core.federation._pairs import PAIRS, Choices
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
    rule_name = plan.aggregation.name
    if isinstance(plan.local, FedDyn):
        strategy = FedDynMean()
    choices = Choices(plan, strategy, rule)
    pair = first(PAIRS, choices)
    if pair is not None:
        named = f"strategy {plan.strategy.name!r}, aggregation {rule_name!r}"
        msg = (
            f"{pair.one} and {pair.other} do not go together: {pair.why}; take another "
            f"one of the two ({named})"
        )
        raise ConfigurationError(msg)
    complaint = _unfit(choices) if choices.combines else ""
    if complaint:
        msg = f"aggregation {rule_name!r} {complaint}"
        raise ConfigurationError(msg)
    return strategy, rule


def _unfit(choices: Choices) -> str:
    """Return what an aggregation has against a plan; empty if it is nothing."""
    plan, rule = choices.plan, choices.rule
    least = plan.selection.least
    if least < rule.least:
        return (
            f"needs at least {rule.least} updates in each round, and in this plan "
            f"{least} can be enough: raise selection.sites, or selection.k or "
            "selection.quorum if that is set, or name one that takes fewer"
        )
    if rule.trusts_examples and plan.admission.most_examples is None:
        return (
            "would let a site decide alone that it has seen very many examples: "
            "set admission.most_examples, or aggregation.settings.by_examples = false"
        )
    return ""


def _has(kind: type[msgspec.Struct]) -> str:
    names = [field.name for field in msgspec.structs.fields(kind)]
    return f"its settings are {', '.join(names)}" if names else "it has no settings"
