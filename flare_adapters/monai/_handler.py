"""The handler for MONAI and Ignite: one `run` plays every federated round."""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from os import PathLike
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from flare_adapters._torch import LocalSession, num_examples, options
from flare_adapters.monai._loop import (
    evaluate,
    evaluator_of,
    fit_length_to,
    go_on,
    horizon_of,
    loss_of,
    stop,
    undisturbed,
)
from flare_adapters.monai._trained import StepHooks, network_of, optimizers_of
from flare_core import OptimizerState, Select
from flare_core import site as read_site

_log = logging.getLogger(__name__)


class FLHandler:
    """Exchanges weights at round boundaries, inside the running `Engine.run`.

    After the last optimizer step of a round, and before handlers of EPOCH_COMPLETED
    validate and save, the site's weights go out and the next global model comes in:
    validation metrics, best-model choice and checkpoints are those of global models.
    The run's plan sets the length of the run when it starts.

    In a Bundle, it is one entry that a second config file adds::

        {"+train#handlers": [{"_target_": "flare_adapters.monai.FLHandler",
                              "evaluator": "@validate#evaluator"}]}

    Args:
        site: The site file; by default the one that ``FLARE_SITE`` names.  With
            ``FLARE_SITE=off`` the handler does nothing at all.
        evaluator: The engine that validates; its metrics are reported.  By default
            that of a ``ValidationHandler`` of MONAI, if the engine has one.  The script
            runs it as it likes.  Where rounds end by steps, within epochs, the
            handler runs it on each global model that the script does not validate.
        network: What is trained, where the engine has no ``network``: a module, or a
            `torch.nn.ModuleDict` of several.
        optimizer: Its optimizer or optimizers, where the engine has no ``optimizer``.
        every_n_epochs: A round ends after so many epochs; 1 if nothing is said.
        every_n_steps: A round ends with the iteration that takes the optimizers to so
            many steps; batches whose gradients are only accumulated are none.
        select: Which tensors are exchanged: ``"auto"`` (trainable ones where anything
            is frozen, else all), ``"all"``, ``"trainable"``, ``"no_batchnorm"``, or
            globs, where ``"!glob"`` takes out again.
        optimizer_state: Whether optimizers ``"keep"`` their state across rounds or
            ``"reset"`` it.

    Raises:
        ConfigurationError: If no federation is set up.
    """

    def __init__(
        self,
        site: str | PathLike[str] | None = None,
        *,
        evaluator: Engine | None = None,
        network: nn.Module | None = None,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        select: Select = "auto",
        optimizer_state: OptimizerState = "keep",
    ) -> None:
        self._options = options(
            site, every_n_epochs, every_n_steps, select, optimizer_state
        )
        self._federated = read_site(site).federated
        self._evaluator = evaluator
        self._network = network
        self._optimizer = optimizer
        self._optimizers: list[Optimizer] = []
        self._session: LocalSession | None = None
        self._hooks = StepHooks()
        self._epochs_seen = self._epoch_began = 0
        self._num_examples = 0
        self._owes_validation = False
        self._interrupted = False

    def attach(self, engine: Engine) -> None:
        """Take part in every run of the engine.

        The run itself is wrapped, for two things that no event gives: to be the last
        handler of STARTED, after all that load checkpoints; and to learn how a run
        ends, whatever other handlers do (EXCEPTION_RAISED reaches no handler behind
        one that raises, and an error that none of them raises is swallowed).
        """
        if not self._federated:
            return
        engine.run = self._taking_part(engine, engine.run)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.INTERRUPT, self._interrupt)
        if self._evaluator is not None:
            self._evaluator.add_event_handler(Events.COMPLETED, self._evaluated)

    def _find_evaluator(self, engine: Engine) -> None:
        """Look for an evaluator now that all handlers are attached."""
        if self._evaluator is None:
            self._evaluator = evaluator_of(engine)
            if self._evaluator is not None:
                self._evaluator.add_event_handler(Events.COMPLETED, self._evaluated)

    def _taking_part(self, engine: Engine, run: Callable[..., Any]) -> Any:
        @wraps(run)
        def taking_part(*args: Any, **kwargs: Any) -> Any:
            self._interrupted = False
            self._find_evaluator(engine)
            session = self._session = self._session or LocalSession(self._options)
            try:
                with engine.add_event_handler(Events.STARTED, self._started):
                    state = run(*args, **kwargs)
                if not self._interrupted:
                    self._leave(engine, session)
            except BaseException as exc:
                session.fail(exc)
                self._forget()
                raise
            return state

        return taking_part

    def _started(self, engine: Engine) -> None:
        """Set the length of the run to the plan's, join and load."""
        session = self._session
        if session is None:
            return
        self._network = network_of(engine, self._network)
        self._optimizers = optimizers_of(engine, self._optimizer)
        horizon = horizon_of(engine)
        fit_length_to(session, engine)
        if horizon != horizon_of(engine):
            _log.warning(
                "the plan sets the length: %d %s instead of %s; LR schedules that were "
                "built for another length do not see it",
                session.total_length,
                session.schedule.unit,
                horizon,
            )
        state = engine.state
        self._epochs_seen = state.epoch
        self._epoch_began = state.iteration - state.iteration % (
            state.epoch_length or 1
        )
        self._hooks.add(session, self._optimizers)
        session.join(self._network, playable=session.total_length, horizon=horizon)
        self._owes_validation = session.schedule.unit == "steps"

    def _iteration_started(self, engine: Engine) -> None:
        """Validate what is about to change, and count while the batch is whole."""
        if self._session is None:
            return
        self._validate_if_owed(engine)
        found = num_examples(engine.state.batch)
        if found is None and not self._num_examples:
            _log.warning(
                "cannot count the examples of a batch (%s): each counts as one",
                type(engine.state.batch).__name__,
            )
        self._num_examples = 1 if found is None else found

    def _iteration_completed(self, engine: Engine) -> None:
        """Count, and exchange if the round is over."""
        if self._session is None:
            return
        self._session.saw(self._num_examples, loss_of(engine.state.output))
        played = engine.state.iteration - self._epoch_began
        last = played == engine.state.epoch_length
        if last:
            self._epoch_over(engine)
        if self._session.due:
            self._exchange(engine, epoch_is_over=last)
            self._owes_validation = self._session.schedule.unit == "steps"

    def _epoch_completed(self, engine: Engine) -> None:
        """Catch an epoch whose last iteration nobody knew, or that was cut short."""
        if self._session is None:
            return
        self._epoch_began = engine.state.iteration
        self._epoch_over(engine)
        if self._session.due:
            self._exchange(engine, epoch_is_over=True)
            self._owes_validation = True  # handlers before this one came too early
        if self._session.schedule.unit == "steps" and not self._session.final:
            go_on(engine)

    def _evaluated(self, evaluator: Engine) -> None:
        """Take the metrics, if it was the global model that was validated."""
        if self._session is not None:
            self._session.evaluated(evaluator.state.metrics)
            self._owes_validation &= not self._session.fresh

    def _interrupt(self, engine: Engine) -> None:
        """Stay in the federation: the run goes on when it is called again."""
        del engine
        self._interrupted = True

    def _leave(self, engine: Engine, session: LocalSession) -> None:
        """Leave; if the run is not over, say so."""
        if session.final:
            self._validate_if_owed(engine)
        stopped = engine.should_terminate
        why = "was stopped (EarlyStopping, TimeLimit, …)" if stopped else "ended"
        session.leave(f"its run {why}")
        self._forget()

    def _forget(self) -> None:
        self._session = None
        self._hooks.remove()

    def _epoch_over(self, engine: Engine) -> None:
        if self._session is not None and self._epochs_seen < engine.state.epoch:
            self._epochs_seen = engine.state.epoch
            self._session.epoch_done()

    def _exchange(self, engine: Engine, *, epoch_is_over: bool) -> None:
        if self._session is not None:
            self._session.exchange(self._optimizers)
            if self._session.final:
                stop(engine, epoch_is_over=epoch_is_over)

    def _validate_if_owed(self, engine: Engine) -> None:
        if not self._owes_validation:
            return
        self._owes_validation = False
        if self._evaluator is not None and self._network is not None:
            with undisturbed(self._network):
                evaluate(self._evaluator, engine.state.epoch)
