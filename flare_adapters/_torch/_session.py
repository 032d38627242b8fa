"""What happens between two exchanges, whatever framework runs the loop.

An adapter only forwards its framework's hooks: it opens a session before the LR
schedule is built, calls `join` before the first step, `saw`, `at_step` and
`epoch_done` as training goes on, `exchange` when `due`, `evaluated` after a
validation, and `leave` or `fail`.
"""

import atexit
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from flare_adapters._torch._checkpoint import Trained
from flare_adapters._torch._exchanged import Exchanged, Wire
from flare_adapters._torch._host import Host
from flare_adapters._torch._kept import KeptRounds
from flare_adapters._torch._local import correction
from flare_adapters._torch._metrics import scalars
from flare_adapters._torch._options import Options
from flare_adapters._torch._ranks import Ranks
from flare_core import (
    FlareError,
    GlobalModel,
    HorizonError,
    Link,
    Metrics,
    ModelState,
    Plan,
    PreflightPassed,
    Proposal,
    Schedule,
    Site,
    Update,
    connect,
    site,
)

_log = logging.getLogger(__name__)


@final
class LocalSession:
    """One site's part in a run, on every rank of the site.

    Args:
        options: What the user said at the callback.

    Attributes:
        round_number: The round being played.
        final: Whether the final global model is loaded.
    """

    def __init__(self, options: Options) -> None:
        self._site: Site = site(options.site)
        self._options = options
        self._ranks = Ranks()
        self._host = Host()
        self._link: Link | None = None
        self.plan, self._run = self._ranks.from_first(self._plan)
        self._kept = KeptRounds(
            self._site, self._run, self.plan.fingerprint, self._ranks
        )
        self._options = options.under(self.plan)
        self._correction = correction(self.plan.local)
        self._exchanged: Exchanged | None = None
        self.round_number = -1
        self.final = False
        self._epochs = self._step = self._step_at_load = 0
        self._examples: int | Tensor = 0
        self._loss: float | Tensor = 0.0
        self._num_losses = 0
        self._global_metrics: Metrics = {}
        self._open = True
        atexit.register(self._abandon)

    @property
    def schedule(self) -> Schedule:
        """Where a round ends: the plan's word, else the script's."""
        return self._options.schedule

    @property
    def total_length(self) -> int:
        """Epochs or steps of the whole run, as the schedule counts."""
        return self.plan.rounds * self.schedule.length

    @property
    def joined(self) -> bool:
        """Whether a global model was loaded."""
        return self.round_number >= 0

    @property
    def steps(self) -> int:
        """Optimizer steps since the global model was loaded."""
        return self._step - self._step_at_load

    @property
    def fresh(self) -> bool:
        """Whether the model is exactly the global one."""
        return self.joined and self.steps == 0

    @property
    def due(self) -> bool:
        """Whether the round is over and it is time to exchange."""
        if self.final or not self.joined:
            return False
        done = self.steps if self.schedule.unit == "steps" else self._epochs
        return done >= self.schedule.length

    @property
    def trained(self) -> Trained | None:
        """The last round that an earlier process of this site has trained.

        This one goes on from it; None if there is none.
        """
        return self._kept.trained

    @property
    def trained_path(self) -> Path:
        """The folder with what the framework saved of the round in `trained`."""
        assert self._kept.path is not None  # noqa: S101 - there is a round
        return self._kept.path

    @property
    def base(self) -> list[str]:
        """Names of what is frozen and stays: as the script makes it, always."""
        return self._of_model.base

    @property
    def recovers(self) -> bool:
        """Whether rounds are saved, so that a restart goes on where this one was."""
        return self._kept.path is not None

    @property
    def corrects_gradients(self) -> bool:
        """Whether `adjust_gradients` does anything."""
        return self._correction.corrects

    def join(
        self,
        model: nn.Module,
        *,
        playable: float,
        horizon: str,
        wire: Wire | None = None,
        optimizers: Iterable[Optimizer] = (),
    ) -> None:
        """Propose the model, wait for all sites, and load the global model.

        Args:
            model: The model that is trained, wrapped or not.
            playable: Epochs or steps that the script's loop will run, as the
                schedule counts.
            horizon: The same in the script's words, e.g. ``max_epochs=10``.
            wire: What is special about its tensors on the wire.
            optimizers: As for `exchange`, where a round was trained before.

        Raises:
            HorizonError: If the loop ends before the run does.
            UnsupportedError: If the plan asks for what the adapter cannot do.
        """
        if playable < self.total_length:
            raise HorizonError(self._too_short(playable, horizon))
        wire = wire or Wire()
        wire.refuse(self.plan.lora)
        self._exchanged = exchanged = Exchanged(
            model,
            select=self._options.select,
            wire=wire,
            ranks=self._ranks,
            host=self._host,
        )
        exchanged.add_controls(self._correction.beside(exchanged.trained))
        if self.trained is not None:
            self._kept.restore(self._correction)
        proposal = Proposal(
            weights=exchanged.gather(),
            base=exchanged.fingerprint,
            schedule=self.schedule,
            stays=exchanged.stays,
            horizon=horizon,
            scales=wire.scales,
        )
        if self.trained is None:
            self._load(lambda link: link.join(proposal))
            return
        update = self._update(self.trained, proposal.weights)
        self._load(lambda link: link.resume(proposal, update))
        self._reset(optimizers)
        self._kept.restore_random()

    def saw(
        self, num_examples: int | Tensor, loss: Tensor | float | None = None
    ) -> None:
        """Count the examples of a batch, and its loss; tensors are read at the end."""
        self._examples = self._examples + num_examples
        if loss is not None:
            found = loss.detach().float() if isinstance(loss, Tensor) else loss
            self._loss = self._loss + found
            self._num_losses += 1

    def at_step(self, step: int) -> None:
        """Note how many optimizer steps the framework has counted in all."""
        self._step = step

    def epoch_done(self) -> None:
        """Count a pass over the data."""
        self._epochs += 1

    def adjust_gradients(
        self, optimizer: Optimizer, scale: Tensor | float | None = None
    ) -> None:
        """Apply the plan's correction; right before an optimizer step.

        Args:
            optimizer: The one that steps.
            scale: What the gradients are multiplied by, if they still are.
        """
        if not self.final:
            self._correction.adjust(optimizer, 1.0 if scale is None else scale)

    def stepped(self, optimizer: Optimizer) -> None:
        """Tell the correction that an optimizer has stepped; right after it has."""
        self._correction.stepped(optimizer)

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Take the framework's validation metrics, if they are the global model's."""
        if self.fresh:
            self._global_metrics = {**self._global_metrics, **scalars(metrics)}

    def exchange(
        self,
        optimizers: Iterable[Optimizer] = (),
        *,
        save: Callable[[Path], object] | None = None,
    ) -> None:
        """Hand in the local model, wait for all sites, load the next global model.

        Args:
            optimizers: Those whose state is dropped, where the options say so.
            save: Puts the framework's own checkpoint into a folder, on all ranks; it
                is called before anything leaves, where rounds are saved.  It raises
                `UnsupportedError`, on all ranks, if nobody could go on from it.

        Raises:
            UnsupportedError: If what was frozen when the run began is trained now.
        """
        self._of_model.refuse_thawed()
        self._correction.round_ended(self.round_number)
        trained = Trained(
            run=self._run,
            plan=self.plan.fingerprint,
            round_number=self.round_number,
            num_examples=self._ranks.total(int(self._examples)),
            num_steps=self.steps,
            metrics=self._ranks.mean(scalars(self._training_loss())),
            global_metrics=self._ranks.mean(self._global_metrics),
        )
        if save is not None:
            self._kept.save(trained, self._correction, save)
        update = self._update(trained, self._of_model.gather())
        self._load(lambda link: link.exchange(update))
        self._reset(optimizers)

    def leave(self, why: str) -> None:
        """Go: at the end, or because the local loop stopped before it.

        Args:
            why: The reason, if it is not the end.
        """
        if not self._open:
            return
        when = f"in round {self.round_number}" if self.joined else "before it joined"
        reason = "" if self.final else f"{why} {when}"
        if reason:
            _log.warning("site %r leaves the run: %s", self._site.name, reason)
        metrics = self._ranks.mean(self._global_metrics) if self.final else {}
        self._ranks.part()
        self._close(metrics, reason, failed=False)

    def fail(self, error: BaseException) -> None:
        """Tell the server that training broke, so that nobody waits for this site."""
        if self._open:
            told = isinstance(error, (FlareError, PreflightPassed))
            name = type(error).__name__
            self._close({}, name if told else f"{name}: {error}", failed=True)

    @property
    def _of_model(self) -> Exchanged:
        assert self._exchanged is not None  # noqa: S101 - it has joined
        return self._exchanged

    def _plan(self) -> tuple[Plan, str]:
        self._link = connect(self._site)
        return self._link.plan(), self._link.run

    def _update(self, trained: Trained, weights: ModelState) -> Update:
        return Update(
            site=self._site.name,
            round_number=trained.round_number,
            weights=weights,
            num_examples=trained.num_examples,
            num_steps=trained.num_steps,
            metrics=trained.metrics,
            global_metrics=trained.global_metrics,
        )

    def _reset(self, optimizers: Iterable[Optimizer]) -> None:
        if self._options.optimizer_state == "reset":
            for optimizer in optimizers:
                optimizer.state.clear()

    def _load(self, ask: Callable[[Link], GlobalModel]) -> None:
        """Ask the server on the first rank; load its answer on all."""
        received: list[GlobalModel] = []

        def asked() -> tuple[int, bool, int | None]:
            assert self._link is not None  # noqa: S101 - the first rank has opened it
            model = ask(self._link)
            received.append(model)
            return model.round_number, model.final, model.counted

        self.round_number, self.final, counted = self._ranks.from_first(asked)
        weights = received[0].weights if received else ModelState({})
        self._of_model.scatter(weights)
        self._epochs = self._examples = self._num_losses = 0
        self._loss = 0.0
        self._step_at_load = self._step
        self._global_metrics = {}
        if not self.final:
            self._correction.round_started(counted)

    def _training_loss(self) -> dict[str, float]:
        if not self._num_losses:
            return {}
        return {"loss": float(self._loss) / self._num_losses}

    def _close(self, metrics: Metrics, reason: str, *, failed: bool) -> None:
        self._open = False
        atexit.unregister(self._abandon)
        if self._link is not None:
            self._link.leave(metrics, reason=reason, failed=failed)
            if self.final:
                self._kept.remove()

    def _abandon(self) -> None:
        """The interpreter ends and nobody has said good-bye."""
        error = getattr(sys, "last_value", None)
        self.fail(error or RuntimeError("its script ended before the run did"))

    def _too_short(self, playable: float, horizon: str) -> str:
        length, unit = self.schedule.length, self.schedule.unit
        rounds = int(playable // length)
        return (
            f"site {self._site.name!r}: {horizon} plays {rounds} rounds of {length} "
            f"{unit}, the run has {self.plan.rounds}; set the loop to "
            f"{self.total_length} {unit}, or the plan to {rounds} rounds"
        )
