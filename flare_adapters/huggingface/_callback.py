"""The callback for the `Trainer`: one `train` plays every federated round."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from flare_adapters._torch import LocalSession, options
from flare_adapters.huggingface._count import Tally
from flare_adapters.huggingface._loop import (
    Untrained,
    evaluates,
    evaluation_metrics,
    horizon_of,
    innermost,
    playable,
    train_length_to,
)
from flare_adapters.huggingface._lora import train_by_turns, wire_of
from flare_adapters.huggingface._recovery import Recovery, saves_rounds
from flare_adapters.huggingface._refuse import (
    refuse_arguments,
    refuse_model,
    refuse_optimizer,
    refuse_unrecovered,
)
from flare_adapters.huggingface._residual import forget_residual
from flare_adapters.huggingface._saved import Event
from flare_core import OptimizerState, Select
from flare_core import site as read_site


class FLCallback(TrainerCallback):
    """Exchanges weights at round boundaries, inside the running `Trainer.train`.

    After the last optimizer step of a round, and before the `Trainer` evaluates and
    saves, the site's weights go out and the next global model comes in: metrics, the
    choice of the best model and checkpoints are those of global models.  The run's
    plan sets the length of the training before the LR schedule is built.

    With PEFT only what is trained is exchanged, under PEFT's own names.  A language
    model's update weighs as many examples as it has target tokens, as in its loss.

    At a real site a round is saved before anything of it leaves.  The same script,
    started again after a crash, goes on there by itself.

    Args:
        site: The site file; by default the one that ``FLARE_SITE`` names.  With
            ``FLARE_SITE=off`` the callback does nothing at all.
        every_n_epochs: A round ends after so many epochs; 1 if nothing is said.  Data
            without a length needs rounds of steps.
        every_n_steps: A round ends after so many optimizer steps
            (``state.global_step``).
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
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        select: Select = "auto",
        optimizer_state: OptimizerState = "keep",
    ) -> None:
        self._options = options(
            site, every_n_epochs, every_n_steps, select, optimizer_state
        )
        self._federated = read_site(site).federated
        self._session: LocalSession | None = None
        self._recovery: Recovery | None = None
        self._tally: Tally | None = None
        self._horizon = ""
        self._hooks: list[RemovableHandle] = []
        self._step = self._steps_before = 0
        self._evaluated_at = -1
        self._untrained: Untrained | None = None

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Get the plan, and set the length of the training to it."""
        if self._federated and self._session is None:
            train_length_to(self._open(args), args)

    def recovery(self, trainer: Trainer) -> Recovery | None:
        """Return what saves the rounds of a training that is about to begin.

        None if there is nothing to save them for: a simulation, or no federation.
        """
        if not self._federated:
            return None
        session = self._session or self._open(trainer.args)
        recovers = session.recovers and saves_rounds()
        with _told(session):
            self._recovery = Recovery(trainer, self, session) if recovers else None
        return self._recovery

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:
        """Join, and load the first global model; later times, only go on.

        So it is with a round trained by an earlier process: that is taken up where it
        ended, and the site joins there.
        """
        if not self._federated:
            return
        session = self._session or self._open(args)  # as `add_callback` is too late
        self._unhook()
        # `auto_find_batch_size` starts over, and counts from 0, after steps were taken
        self._steps_before = self._step - state.global_step if session.joined else 0
        self._step = self._steps_before + state.global_step
        session.at_step(self._step)
        if session.trained is not None:
            with _told(session):
                refuse_unrecovered(session, recovers=self._recovery is not None)
        elif not session.joined:
            with _told(session):
                kwargs |= {"model": model, "optimizer": optimizer}
                self._join(session, args, state, **kwargs)
        if session.final:  # it was in no round's cohort
            self._untrained = Untrained(model)
            control.should_training_stop = True
        self._hook(session, args, model, innermost(optimizer))

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Note what a round saved in the middle of the epoch needs."""
        if self._recovery is not None:
            self._recovery.epoch_begins()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count, and exchange if a round of steps is over."""
        session = self._session
        if self._untrained is not None:
            self._untrained.put_back()
        elif session is not None and self._tally is not None:
            self._step = self._steps_before + state.global_step
            session.at_step(self._step)
            session.saw(*self._tally.take())
            self._exchange_when_due(
                session, "on_step_end", args, state, control, **kwargs
            )

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Exchange if a round of epochs is over; an epoch left unfinished is none."""
        session = self._session
        if self._untrained is not None:
            self._untrained.put_back()
            control.should_evaluate |= evaluates(args)
            return
        if session is None:
            return
        unfinished = not float(state.epoch or 0).is_integer()
        if not (control.should_training_stop and unfinished):
            session.epoch_done()
        exchanged = self._exchange_when_due(
            session, "on_epoch_end", args, state, control, **kwargs
        )
        if not exchanged and self._evaluated_at == self._step:
            control.should_evaluate = False  # the same weights

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Take the metrics, if it was the global model that was evaluated."""
        if self._session is not None:
            self._evaluated_at = self._step
            self._session.evaluated(evaluation_metrics(metrics))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave; if the run is not over, say so.

        The model may be another one by now: see ``load_best_model_at_end``.
        """
        session, self._session = self._session, None
        self._recovery = self._untrained = None
        self._unhook()
        if session is not None:
            at = f"at step {state.global_step} of {state.max_steps}"
            session.leave(f"its training was stopped {at} (by EarlyStopping, …)")

    def _open(self, args: TrainingArguments) -> LocalSession:
        session = LocalSession(self._options)
        self._session, self._horizon = session, horizon_of(args)
        self._step = self._steps_before = 0
        self._evaluated_at = -1
        with _told(session):
            refuse_arguments(args, session)
        return session

    def _hook(
        self,
        session: LocalSession,
        args: TrainingArguments,
        model: nn.Module,
        optimizer: Optimizer,
    ) -> None:
        def correct(inner: Optimizer, *_: Any) -> None:
            # unscaled unless fused, and clipped: the Trainer has no hook before that
            session.adjust_gradients(inner, getattr(inner, "grad_scale", None))

        def stepped(inner: Optimizer, *_: Any) -> None:
            session.stepped(inner)

        self._tally = Tally(args, model)
        self._hooks.append(
            model.register_forward_hook(self._tally.see, with_kwargs=True)
        )
        if session.corrects_gradients:
            self._hooks.append(optimizer.register_step_pre_hook(correct))
            self._hooks.append(optimizer.register_step_post_hook(stepped))

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _join(
        self,
        session: LocalSession,
        args: TrainingArguments,
        state: TrainerState,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        refuse_model(model)
        refuse_optimizer(innermost(optimizer))
        session.join(
            model,
            playable=playable(session, args, state, train_dataloader),
            horizon=self._horizon,
            wire=wire_of(model, session.plan.lora),
            optimizers=[innermost(optimizer)],
        )
        _prepare(session, model)

    def _exchange_when_due(
        self,
        session: LocalSession,
        event: Event,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> bool:
        recovery = self._recovery
        with _told(session):
            if not session.joined:  # the round was trained by an earlier process
                self._join(session, args, state, **kwargs)
            elif session.due:
                session.exchange(
                    [innermost(kwargs["optimizer"])],
                    save=recovery
                    and partial(recovery.save, event=event, control=control),
                )
                _prepare(session, kwargs["model"])
            else:
                return False
        control.should_evaluate |= evaluates(args)
        control.should_training_stop |= session.final
        return True


def _prepare(session: LocalSession, model: nn.Module) -> None:
    """Make a model ready for the round that begins, or for what follows the run."""
    lora = session.plan.lora
    train_by_turns(model, lora, None if session.final else session.round_number)
    if session.final:
        forget_residual(model, lora)


@contextmanager
def _told(session: LocalSession) -> Iterator[None]:
    """Tell the server of an error; the `Trainer` has no hook for one."""
    try:
        yield
    except BaseException as exc:
        session.fail(exc)
        raise
