"""A round that is trained, as a checkpoint: all that the run goes on from."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final
from weakref import ref

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from flare_adapters.monai._data import DataPosition
from flare_adapters.monai._plain import plain
from flare_adapters.monai._stateful import Stateful, loaders_in, stateful_in
from flare_core import ConfigurationError

_log = logging.getLogger(__name__)


@final
class Recovery:
    """Saves an engine at the end of a round, and has a later process go on there.

    Each rank has a file of its own.

    Args:
        engine: The one that trains, when its run has started.
        evaluator: The one that validates, if it is known.
        network: What is trained.
        optimizers: Its optimizers.
        handler: What is attached to the engine and keeps its own state.
    """

    def __init__(
        self,
        engine: Engine,
        evaluator: Engine | None,
        network: nn.Module,
        optimizers: Sequence[Optimizer],
        handler: object,
    ) -> None:
        self._engine = engine
        self._evaluator = evaluator
        self._network = network
        self._optimizers = optimizers
        self._handler = handler
        self._unsaved: set[str] = set()
        self._folder = Path()
        self._saved: dict[str, Any] = {}
        self.data = DataPosition(engine, self._loaders().values())

    def save(
        self, folder: Path, *, at: Mapping[str, Any], stepped: Iterable[Optimizer]
    ) -> None:
        """Save.

        Args:
            folder: Where.
            at: Plain data that say which moment it is, for `open`.
            stepped: Optimizers that have used up their gradients.
        """
        used = {id(one) for one in stepped}
        model = {
            "network": plain(self._network.state_dict()),
            "optimizers": [plain(one.state_dict()) for one in self._optimizers],
            "gradients": [
                [] if id(one) in used else [plain(p.grad) for p in _parameters(one)]
                for one in self._optimizers
            ],
        }
        torch.save(model, folder / _file("model"))
        found = {place: self._state(place, one) for place, one in self._found().items()}
        engine = {
            "at": dict(at),
            "training": [one.training for one in self._network.modules()],
            "found": {place: one for place, one in found.items() if one is not None},
            "data": self.data.state(),
            "validates_with": self._place_of_validation_data(),
        }
        torch.save(engine, folder / _file("engine"))

    def open(self, folder: Path) -> dict[str, Any]:
        """Read what was saved, and return which moment it was.

        Raises:
            ConfigurationError: If this rank has saved nothing there.
        """
        self._folder = folder
        path = folder / _file("engine")
        if not path.exists():
            msg = (
                f"round checkpoint {folder} has no {path.name}: was the site started "
                "with fewer processes before? Start as many, or remove the folder to "
                "begin anew"
            )
            raise ConfigurationError(msg)
        self._saved = torch.load(path, weights_only=True)
        at: dict[str, Any] = self._saved["at"]
        return at

    def restore(self, *, num_played: int) -> None:
        """Go back to what was opened.

        Args:
            num_played: Iterations of the epoch, if it is not over.

        Raises:
            ConfigurationError: If the script has not what was saved.
        """
        # on the CPU: there may be no room for two of them where the model is
        path = self._folder / _file("model")
        model = torch.load(path, weights_only=True, map_location="cpu")
        self._network.load_state_dict(model["network"])
        for module, training in zip(
            self._network.modules(), self._saved["training"], strict=True
        ):
            module.training = training
        for one, state, gradients in zip(
            self._optimizers, model["optimizers"], model["gradients"], strict=True
        ):
            one.load_state_dict(state)
            # it has stepped, if not in this process: LR schedulers of torch warn else
            one._opt_called = True  # noqa: SLF001 - as above
            for parameter, gradient in zip(_parameters(one), gradients, strict=False):
                if gradient is not None:
                    parameter.grad = gradient.to(parameter.device)
        found = self._found()
        for place, state in self._saved["found"].items():
            if place not in found:
                msg = (
                    f"round checkpoint {self._folder}: it has the state of {place}, "
                    "which is not in the script; start the same script, or remove the "
                    "folder to begin anew"
                )
                raise ConfigurationError(msg)
            found[place].load_state_dict(state)
        self._give_validation_data(self._saved["validates_with"])
        self.data.go_to(self._saved["data"], num_played=num_played)

    def _found(self) -> dict[str, Stateful]:
        return stateful_in(self._engine, self._evaluator, self._known)

    def _place_of_validation_data(self) -> str | None:
        """Return where the data are that the evaluator had last, if it is seen."""
        if self._evaluator is None:
            return None
        data, found = self._evaluator.state.dataloader, self._loaders()
        return next((place for place, one in found.items() if one is data), None)

    def _give_validation_data(self, place: str | None) -> None:
        """Have the handler's own validation, in an epoch's middle, go on."""
        if self._evaluator is not None and place is not None:
            self._evaluator.state.dataloader = self._loaders().get(place)

    def _loaders(self) -> dict[str, DataLoader[Any]]:
        return loaders_in(self._engine, self._known)

    @property
    def _known(self) -> list[object]:
        return [self._handler, self._network, *self._optimizers]

    def _state(self, place: str, one: Stateful) -> Any:
        """Return its state, or None if it cannot be saved, which is said once."""
        try:
            return plain(one.state_dict())
        except TypeError as exc:
            if place not in self._unsaved:
                self._unsaved.add(place)
                _log.warning(
                    "the state of %s cannot be saved (%s): if this script has to be "
                    "started again, it begins anew there",
                    place,
                    exc,
                )
            return None


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"]]


def _file(what: str) -> str:
    several = dist.is_available() and dist.is_initialized()
    return f"{what}-{dist.get_rank() if several else 0}.pt"


def go_on_behind(engine: Engine, event: Events, handler: Callable[..., Any]) -> None:
    """Call the handlers of an event that stand behind one.

    Ignite 0.5 has no public view of what is attached to an engine.
    """
    handlers = engine._event_handlers[event]  # noqa: SLF001 - as above
    place = [one for one, *_ in handlers].index(handler)
    for one, given, named in handlers[place + 1 :]:
        known = [arg() if isinstance(arg, ref) else arg for arg in given]  # the engine
        one(*known, **named)
