"""The server above that of a region: there, the region is one site."""

from collections.abc import Sequence
from typing import final

import msgspec

from flare_core._model import GlobalModel, Metrics, ModelState, Update
from flare_core._plan import Plan
from flare_core._selection import Selection
from flare_core._site import Site
from flare_core._stop import Stop
from flare_core.application._link import Proposal
from flare_core.application._zmq_link import ZmqLink
from flare_core.communication import Join, Summand
from flare_core.federation import Contribution, weighted_mean

_EXACT = ("none", "xor")
"""Encodings that lose nothing."""


def plan_below(plan: Plan, *, sites: int, quorum: int | None = None) -> Plan:
    """Return the plan of a region's run, which is a part of another run.

    Which model is the best, and when the run ends, is decided above.  Global models
    are handed on as they are: to round them once more would give the region's sites
    others than the rest have.

    Args:
        plan: Of the run above.
        sites: Sites of the region.
        quorum: Least number of updates that a sum is made of; all, if None.

    Raises:
        ValueError: If the quorum is more than the sites.
    """
    replace = msgspec.structs.replace
    given = plan.selection
    selection = Selection(sites=sites, quorum=quorum, newcomers=given.newcomers)
    encoding = plan.encoding
    if encoding.down not in _EXACT:
        encoding = replace(encoding, down="none")
    return replace(plan, selection=selection, stop=Stop(), encoding=encoding)


@final
class Above:
    """Speaks for a region; connects with the first call.

    Its methods but `close` and `leave` block, and are for one thread at a time; these
    two may be called from another one, and end what is waited for.

    Args:
        site: Who the region is above, and where that is.

    Attributes:
        model: The newest global model of the run above; None before `join`.
    """

    def __init__(self, site: Site) -> None:
        self._name = site.name
        self._link = ZmqLink(site)
        self.model: GlobalModel | None = None

    def join(self, weights: ModelState, join: Join) -> GlobalModel:
        """Take part; return the model that is newest there.

        Args:
            weights: What the region would start from, or has.
            join: What its sites would exchange.

        Raises:
            FlareError: If the region may not, or nobody answers.
        """
        proposal = Proposal(
            weights=weights,
            base=join.base,
            schedule=join.schedule,
            stays=join.stays,
            horizon=join.horizon,
            scales=join.scales,
        )
        self.model = self._link.join(proposal)
        return self.model

    def hand_in(
        self, sums: ModelState, updates: Sequence[Contribution], weight: float
    ) -> GlobalModel:
        """Hand in the sum of a round; return the next global model.

        Args:
            sums: Of the updates, in the types of sums.
            updates: What is in it, in order.
            weight: How much that weighs together.

        Raises:
            FlareError: If it is refused, the run has ended, or nobody answers.
        """
        assert self.model is not None  # noqa: S101 - it has joined
        weights = {one.site: one.num_examples for one in updates}
        update = Update(
            site=self._name,
            round_number=self.model.round_number,
            weights=sums,
            num_examples=sum(weights.values()),
            metrics=weighted_mean({one.site: one.metrics for one in updates}, weights),
            global_metrics=weighted_mean(
                {one.site: one.global_metrics for one in updates}, weights
            ),
        )
        summands = [_summand(one) for one in updates]
        self.model = self._link.exchange(update, summands=summands, weight=weight)
        return self.model

    def leave(self, metrics: Metrics, reason: str) -> None:
        """Say good-bye.

        Args:
            metrics: Of the final model.
            reason: Why, if it is not the end of the run.
        """
        self._link.leave(metrics, reason=reason, failed=bool(reason))

    def close(self) -> None:
        """Break off without a word, to come back later."""
        self._link.close()


def _summand(one: Contribution) -> Summand:
    return Summand(
        site=one.site,
        num_examples=one.num_examples,
        num_steps=one.num_steps,
        global_metrics=dict(one.global_metrics),
        squared_norm=one.squared_norm,
    )
