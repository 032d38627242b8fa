"""Strategies that weigh the updates otherwise than by their examples."""

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias, final

import msgspec

from flare_core._errors import Refusal
from flare_core.federation._contribution import Contribution
from flare_core.federation._strategy import Strategy

_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1000)]
_Fairness: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=10)]
_LEAST_LOSS = 1e-10
"""A site without any loss weighs next to nothing, and yet something."""
_MOST_LOSS = 1e15
"""Its tenth power is still a number."""


@final
class FedNova(Strategy, frozen=True):
    r"""Sites that take more local steps than others do not pull the model to them.

    With :math:`n_k` examples, :math:`p_k = n_k / n` and :math:`\tau_k` local steps, the
    model goes by :math:`\tau_\mathrm{eff} \sum_k p_k \Delta_k / \tau_k` where
    :math:`\tau_\mathrm{eff} = \sum_k p_k \tau_k` (Wang et al., NeurIPS 2020, section 4,
    https://arxiv.org/abs/2007.07481).  That is for plain SGD at the sites, whose steps
    all weigh the same; sites that take equally many are averaged as by FedAvg, but for
    the last bit.  Each site has to say how many optimizer steps it took.
    """

    def refusal(self, update: Contribution) -> Refusal | None:
        """Refuse who does not say how many steps it took."""
        if update.num_steps:
            return None
        return Refusal(
            reason="update",
            site=update.site,
            what="num_steps",
            expected="its optimizer steps, at least 1, which strategy fednova needs",
            got="0",
            advice="say round.submit(..., num_steps=...); the adapters count by "
            "themselves",
        )

    def weight(self, update: Contribution) -> float:
        """Return examples by steps."""
        return update.num_examples / update.num_steps

    def reach(self, updates: Sequence[Contribution]) -> float:
        """Return the effective number of steps, by the sum of the weights."""
        examples = sum(one.num_examples for one in updates)
        steps = sum(one.num_examples * one.num_steps for one in updates)
        weights = sum(self.weight(one) for one in updates)
        return steps / examples * (weights / examples)


@final
class QFedAvg(Strategy, frozen=True):
    r"""Sites where the global model is bad count for more: q-FedAvg.

    With :math:`F_k` the loss of the global model at a site, :math:`p_k = n_k / n` its
    share of the examples, :math:`L` one by the learning rate and
    :math:`\Delta_k = L (w - w_k)`, the model goes by
    :math:`-\sum_k p_k F_k^q \Delta_k / \sum_k p_k h_k` where
    :math:`h_k = q F_k^{q-1} \|\Delta_k\|^2 + L F_k^q` (Li et al., ICLR 2020, Algorithm
    2, https://arxiv.org/abs/1905.10497, which draws sites by :math:`p_k` instead).
    With :math:`q = 0` it is FedAvg, bit for bit.  Else each site has to evaluate each
    global model before it trains.

    Attributes:
        learning_rate: Of the optimizers at the sites; the paper's 1 / L.
        q: How much fairness counts: 0 is none.  The paper tries 0.001 to 5.
        metric: The global metric that is the loss of the global model at a site.
        from_round: Rounds before this one are averaged as by FedAvg; 1 where scripts do
            not evaluate the model that the run starts from.
    """

    learning_rate: _Positive
    q: _Fairness = 0.1
    metric: str = "loss"
    from_round: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def measures(self) -> bool:
        """A long update is trusted less."""
        return self.q > 0

    def refusal(self, update: Contribution) -> Refusal | None:
        """Refuse who does not say how bad the global model was."""
        if self._fairness(update) == 0:
            return None
        loss = update.global_metrics.get(self.metric)
        if loss is not None and 0 <= loss <= _MOST_LOSS:
            return None
        said = ", ".join(sorted(update.global_metrics)) or "none at all"
        return Refusal(
            reason="update",
            site=update.site,
            what=f"global metric {self.metric!r}",
            expected="the loss of the global model that the round started from, from 0 "
            f"to {_MOST_LOSS:g}, which strategy qfedavg needs",
            got=f"no such metric, but {said}" if loss is None else f"{loss:g}",
            advice="have the script evaluate each global model before it trains, name "
            "another metric as strategy.settings.metric, or, if only the first model "
            "is not evaluated, set strategy.settings.from_round = 1",
        )

    def weight(self, update: Contribution) -> float:
        """Return the examples by the loss to the power of q."""
        fairness = self._fairness(update)
        if fairness == 0:
            return update.num_examples
        return update.num_examples * math.pow(self._loss(update), fairness)

    def reach(self, updates: Sequence[Contribution]) -> float:
        """Return how much shorter the step is than that to the mean."""
        weights = [self.weight(one) for one in updates]
        pairs = zip(updates, weights, strict=True)
        bounds = [weight + self._bound(one, weight) for one, weight in pairs]
        return sum(weights) / sum(bounds)

    def _bound(self, update: Contribution, weight: float) -> float:
        """Return what is in h of a site beside its weight, both by L."""
        fairness = self._fairness(update)
        if fairness == 0:
            return 0.0
        gradient = update.squared_norm / self.learning_rate
        return fairness * weight / self._loss(update) * gradient

    def _fairness(self, update: Contribution) -> float:
        return self.q if update.round_number >= self.from_round else 0.0

    def _loss(self, update: Contribution) -> float:
        return max(update.global_metrics[self.metric], _LEAST_LOSS)
