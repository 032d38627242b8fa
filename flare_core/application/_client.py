"""The Client API: federated rounds for a training loop of one's own."""

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from types import TracebackType
from typing import Self, SupportsFloat, TypeAlias, final

import numpy.typing as npt

from flare_core._errors import ConfigurationError, PreflightPassed, RefusedError
from flare_core._local import FedDyn, Scaffold
from flare_core._model import GlobalModel, Metrics, ModelState, Update, as_scalars
from flare_core._plan import Plan
from flare_core._site import site as read_site
from flare_core.application._link import Proposal, connect

Weights: TypeAlias = Mapping[str, npt.ArrayLike]
Scalars: TypeAlias = Mapping[str, SupportsFloat]


@final
class ClientRound:
    """One round at a site.

    Attributes:
        number: The round, counted from 0.
        weights: The global model it starts from; read-only arrays by name.
    """

    def __init__(
        self,
        model: GlobalModel,
        site: str,
        hand_in: Callable[[Update], None],
    ) -> None:
        self._site = site
        self._hand_in = hand_in
        self.number: int = model.round_number
        self.weights: ModelState = model.weights

    def submit(
        self,
        weights: Weights,
        *,
        num_examples: int,
        num_steps: int = 0,
        metrics: Scalars | None = None,
        global_metrics: Scalars | None = None,
    ) -> None:
        """Hand in the local model; returns when the next global model is here.

        Args:
            weights: The local model after training, by the names of the global one;
                the arrays are read, not kept.
            num_examples: Examples really seen; the aggregation weight.
            num_steps: Optimizer steps taken; some strategies weigh by them.
            metrics: Scalars of the local model.
            global_metrics: Scalars of the global model this round started from.

        Raises:
            ConfigurationError: If the round was handed in already.
            TypeError: If a tensor, a metric or a count is of no use.
            UpdateError: If the server refuses it: another layout, a NaN.
            RunAbortedError: If the run has ended.
        """
        update = Update(
            site=self._site,
            round_number=self.number,
            weights=ModelState(weights, classes=self.weights.layout.classes),
            num_examples=num_examples,
            num_steps=num_steps,
            metrics=as_scalars(metrics or {}),
            global_metrics=as_scalars(global_metrics or {}),
        )
        self._hand_in(update)


@final
class Client:
    """A site's part in a run; made by `join`.  Iterate over it to play the rounds.

    Attributes:
        plan: The run's plan.
    """

    def __init__(
        self,
        initial: Weights,
        *,
        site: str | PathLike[str] | None = None,
    ) -> None:
        self._site = read_site(site)
        if not self._site.federated:
            msg = (
                "a loop written with flare_core.join has no rounds of its own to play "
                "alone; run it with `flare simulate SCRIPT.py --sites 1`"
            )
            raise ConfigurationError(msg)
        weights = ModelState(initial)
        self._final_metrics: Metrics = {}
        self._link = connect(self._site)
        try:
            self.plan: Plan = self._link.plan()
            _refuse_what_adapters_do(self.plan)
            self._model = self._link.join(Proposal(weights=weights))
        except BaseException as exc:
            self._leave_because_of(exc)
            raise

    @property
    def weights(self) -> ModelState:
        """The newest global model; after the loop, the final one."""
        return self._model.weights

    def __iter__(self) -> Iterator[ClientRound]:
        while not self._model.final:
            current = self._model
            yield ClientRound(current, self._site.name, self._hand_in)
            if self._model is current:
                msg = (
                    f"round {current.round_number} was not handed in: call "
                    "round.submit(...) in each pass of the loop"
                )
                raise ConfigurationError(msg)

    def report(self, metrics: Scalars) -> None:
        """Set the scalars of the final model, which the run record keeps."""
        self._final_metrics = as_scalars(metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            reason = "" if self._model.final else "its loop ended early"
            self._link.leave(self._final_metrics, reason=reason)
        else:
            self._leave_because_of(error)

    def _hand_in(self, update: Update) -> None:
        number = update.round_number
        if self._model.final or number != self._model.round_number:
            msg = (
                f"round {number} was handed in already: call round.submit(...) once in "
                "each pass of the loop"
            )
            raise ConfigurationError(msg)
        self._model = self._link.exchange(update)

    def _leave_because_of(self, error: BaseException) -> None:
        if not isinstance(error, (RefusedError, PreflightPassed)):
            self._link.leave({}, reason=_in_one_line(error), failed=True)


def join(initial: Weights, *, site: str | PathLike[str] | None = None) -> Client:
    """Take part in a run; blocks until all sites are there.

    Args:
        initial: The model as it is now, arrays by name.  Every site brings one, of
            the same layout; the run starts from that of the first site by name.
        site: A site file; by default the one that ``FLARE_SITE`` names.

    Returns:
        The rounds, to iterate over, as a context manager.

    Raises:
        ConfigurationError: If no federation is set up.
        LayoutError: If the model differs from the other sites'.
        ServerUnreachableError: If nobody answers.
    """
    return Client(initial, site=site)


def _refuse_what_adapters_do(plan: Plan) -> None:
    """Raise if a site is to do what only the adapters can.

    Raises:
        ConfigurationError: If so: it would take part, and nothing be corrected.
    """
    if isinstance(plan.local, Scaffold | FedDyn):
        msg = (
            f"the plan's {plan.local} needs an adapter (Lightning, Hugging Face, MONAI "
            "or Ignite), which corrects gradients and keeps what it adds up at the "
            "site; a loop written with flare_core.join would do neither: expected "
            "local.name = 'none' or 'fedprox'"
        )
        raise ConfigurationError(msg)


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")
