"""What is trained: a network, its optimizers, and hooks on their steps."""

from collections.abc import Sequence
from typing import Any, final

from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flare_adapters._torch import LocalSession
from flare_core import ConfigurationError


def network_of(engine: Engine, given: nn.Module | None) -> nn.Module:
    """Return the network that is given, else the engine's.

    Raises:
        ConfigurationError: If there is none.
    """
    found: nn.Module = given if given is not None else _attribute(engine, "network")
    return found


def optimizers_of(
    engine: Engine, given: Optimizer | Sequence[Optimizer] | None
) -> list[Optimizer]:
    """Return the optimizers that are given, else the engine's.

    Raises:
        ConfigurationError: If there is none.
    """
    found = given if given is not None else _attribute(engine, "optimizer")
    return list(found) if isinstance(found, (list, tuple)) else [found]


@final
class StepHooks:
    """Hooks on optimizers that hold as long as a run.

    They see what no event of Ignite does: steps, not batches, whether gradients are
    accumulated or a step with infinite gradients is skipped; and gradients right
    before the step, unscaled.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._num_steps = 0
        self._stepped: list[Optimizer] = []

    @property
    def stepped(self) -> list[Optimizer]:
        """Those that have stepped in this iteration."""
        return self._stepped

    def iteration_started(self) -> None:
        """Begin to note which optimizers step."""
        self._stepped = []

    def add(self, session: LocalSession, optimizers: Sequence[Optimizer]) -> None:
        """Count the steps for a session, and let it correct the gradients."""

        def correct(optimizer: Optimizer, *_: Any) -> None:
            # set while a GradScaler steps a fused optimizer, which unscales by itself
            scale = getattr(optimizer, "grad_scale", None)
            session.adjust_gradients(optimizer, scale)

        def count(optimizer: Optimizer, *_: Any) -> None:
            self._stepped.append(optimizer)
            self._num_steps += 1
            session.at_step(self._num_steps)
            session.stepped(optimizer)

        self._num_steps = 0
        for optimizer in optimizers:
            if session.corrects_gradients:
                self._handles.append(optimizer.register_step_pre_hook(correct))
            self._handles.append(optimizer.register_step_post_hook(count))

    def remove(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _attribute(engine: Engine, name: str) -> Any:
    found = getattr(engine, name, None)  # MONAI's engines have it
    if found is None:
        advice = (
            "pass the module that is trained, or a torch.nn.ModuleDict of several"
            if name == "network"
            else "pass its optimizer, or a list of several"
        )
        msg = (
            f"FLHandler: the {type(engine).__name__} has no {name!r}, unlike MONAI's "
            f"SupervisedTrainer; {advice}: FLHandler({name}=...)"
        )
        raise ConfigurationError(msg)
    return found
