"""The handler for MONAI and Ignite: one `run` plays every federated round."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial, wraps
from os import PathLike
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from flare_adapters._torch import LocalSession, num_examples, options
from flare_adapters.monai._loop import (
    begin_within,
    counters_of,
    evaluate,
    evaluator_of,
    fit_length_to,
    go_on,
    horizon_of,
    loss_of,
    stop,
    undisturbed,
)
from flare_adapters.monai._recovery import Recovery, go_on_behind
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

    At a real site each round is saved before its weights go out, and a script that is
    started again goes on with the last one, by itself.

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
        self._recovery: Recovery | None = None
        self._goes_on_at: dict[str, Any] = {}
        self._horizon = ""
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
                with ExitStack() as attached:
                    for event, handler in self._last_handlers().items():
                        attached.enter_context(engine.add_event_handler(event, handler))
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
        self._horizon = horizon
        self._hooks.add(session, self._optimizers)
        if session.recovers:
            self._recovery = Recovery(
                engine, self._evaluator, self._network, self._optimizers, self
            )
        if session.trained is not None:
            self._come_back(engine, session.trained_path)
            return
        state = engine.state
        self._epochs_seen = state.epoch
        self._epoch_began = state.iteration - state.iteration % (
            state.epoch_length or 1
        )
        self._join(session, self._network)
        self._owes_validation = session.final or session.schedule.unit == "steps"
        if session.final:  # it was in no round's cohort
            stop(engine, epoch_is_over=True)

    def _join(self, session: LocalSession, network: nn.Module) -> None:
        session.join(
            network,
            playable=session.total_length,
            horizon=self._horizon,
            optimizers=self._optimizers,
        )

    def _come_back(self, engine: Engine, folder: Path) -> None:
        """Go on after a round that an earlier process has trained."""
        if self._recovery is None:
            return
        self._goes_on_at = self._recovery.open(folder)
        if self._goes_on_at["epoch_is_over"]:
            self._go_on(engine)
        else:  # the epoch starts once more, as Ignite has it, and then goes on within
            begin_within(engine, self._goes_on_at)

    def _go_on(self, engine: Engine) -> None:
        """Restore, take part again, and do what was left to do at the round's end."""
        session, recovery, network = self._session, self._recovery, self._network
        if session is None or recovery is None or network is None:
            return
        at, self._goes_on_at = self._goes_on_at, {}
        over = at["epoch_is_over"]
        played = at["iteration"] - at["epoch_began"]
        recovery.restore(num_played=0 if over else played)
        self._epochs_seen, self._epoch_began = engine.state.epoch, at["epoch_began"]
        self._join(session, network)
        event = Events(at["event"])
        self._exchanged(engine, event, epoch_is_over=over)
        within = event is Events.ITERATION_COMPLETED
        ours = self._iteration_completed if within else self._epoch_completed
        go_on_behind(engine, event, ours)
        if within and over and not engine.should_terminate:
            engine.fire_event(Events.EPOCH_COMPLETED)

    def _last_handlers(self) -> dict[Events, Callable[..., None]]:
        """Return what has to come after all that others do at an event."""
        return {
            Events.STARTED: self._started,
            Events.EPOCH_STARTED: self._epoch_started,
            Events.DATALOADER_STOP_ITERATION: self._iterator_starts,
            Events.TERMINATE_SINGLE_EPOCH: self._iterator_starts,
            Events.GET_BATCH_STARTED: self._batch_starts,
        }

    def _epoch_started(self, engine: Engine) -> None:
        if self._goes_on_at:
            self._go_on(engine)
        elif self._recovery is not None:
            self._recovery.data.iterator_starts_with_the_run()

    def _iterator_starts(self, *_: Engine, **__: int) -> None:
        if self._recovery is not None:
            self._recovery.data.iterator_starts()

    def _batch_starts(self, engine: Engine) -> None:
        del engine
        if self._recovery is not None:
            self._recovery.data.first_batch_starts()

    def _iteration_started(self, engine: Engine) -> None:
        """Validate what is about to change, and count while the batch is whole."""
        if self._session is None:
            return
        self._hooks.iteration_started()
        if self._recovery is not None:
            self._recovery.data.batch_taken()
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
            self._exchange(engine, Events.ITERATION_COMPLETED, epoch_is_over=last)

    def _epoch_completed(self, engine: Engine) -> None:
        """Catch an epoch whose last iteration nobody knew, or that was cut short."""
        if self._session is None:
            return
        self._epoch_began = engine.state.iteration
        self._epoch_over(engine)
        if self._session.due:
            self._exchange(engine, Events.EPOCH_COMPLETED, epoch_is_over=True)
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
        self._session = self._recovery = None
        self._hooks.remove()

    def _epoch_over(self, engine: Engine) -> None:
        if self._session is not None and self._epochs_seen < engine.state.epoch:
            self._epochs_seen = engine.state.epoch
            self._session.epoch_done()

    def _exchange(self, engine: Engine, event: Events, *, epoch_is_over: bool) -> None:
        if self._session is None:
            return
        at = {
            "event": event.value,
            "epoch_is_over": epoch_is_over,
            "epoch_began": self._epoch_began,
            **counters_of(engine),
        }
        save = self._recovery and partial(
            self._recovery.save, at=at, stepped=self._hooks.stepped
        )
        self._session.exchange(self._optimizers, save=save)
        self._exchanged(engine, event, epoch_is_over=epoch_is_over)

    def _exchanged(self, engine: Engine, event: Events, *, epoch_is_over: bool) -> None:
        if self._session is None:
            return
        if self._session.final:
            stop(engine, epoch_is_over=epoch_is_over)
        too_early = event is Events.EPOCH_COMPLETED  # for handlers before this one
        self._owes_validation = too_early or self._session.schedule.unit == "steps"

    def _validate_if_owed(self, engine: Engine) -> None:
        if not self._owes_validation:
            return
        self._owes_validation = False
        if self._evaluator is not None and self._network is not None:
            with undisturbed(self._network):
                evaluate(self._evaluator, engine.state.epoch)
