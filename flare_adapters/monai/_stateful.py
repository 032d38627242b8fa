"""Finds what an engine works with that has a state: LR schedulers, a scaler, ….

Ignite knows handlers, and not what is behind them.  So this looks where a user puts
things: into a handler's attributes, into the variables of a function, into the engine
itself.  What is found is known by where it was found, which the same script repeats.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import getattr_static
from itertools import islice
from logging import Logger
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol, TypeAlias, final

from ignite.engine import Engine
from ignite.handlers import Checkpoint, DiskSaver
from ignite.metrics import Metric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flare_adapters.monai._plain import plain_of

_DEPTH = 4
"""Steps from an engine to what its handlers use; what is further on is not theirs."""
_MOST_ITEMS = 100
"""Items of a list that are looked at: more are data."""
_DEAD_ENDS = (type, ModuleType, Logger, Tensor, Dataset)
_PASSING = frozenset({"batch", "output"})
_Parts: TypeAlias = Iterable[tuple[str, Any]]


class Stateful(Protocol):
    """What can be saved."""

    def state_dict(self) -> Any:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Go back to a state."""
        ...


def stateful_in(
    engine: Engine, evaluator: Engine | None, known: Iterable[Any]
) -> dict[str, Stateful]:
    """Return what has a state, by the place where it was found.

    Args:
        engine: The one that trains; engines that its handlers run are looked into too.
        evaluator: One that is not among these, perhaps.
        known: What is none of it.
    """
    found = _Search(engine, known).all_below(engine, evaluator)
    return {place: one for place, one in found if not isinstance(one, DataLoader)}


def loaders_in(engine: Engine, known: Iterable[Any]) -> dict[str, DataLoader[Any]]:
    """Return the data that an engine and its handlers know, by place."""
    found = _Search(engine, known).all_below(engine)
    return {place: one for place, one in found if isinstance(one, DataLoader)}


@final
class _Attributes:
    """The plain attributes of an object that has no better word for its state.

    Args:
        owner: The object.
        without: Attributes that are left as they are.
    """

    def __init__(self, owner: Any, without: frozenset[str] = frozenset()) -> None:
        self._owner = owner
        self._without = without

    def state_dict(self) -> dict[str, Any]:
        found = vars(self._owner)
        return plain_of({n: found[n] for n in found.keys() - self._without})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        vars(self._owner).update(state_dict)


@final
class _Files:
    """What a `Checkpoint` of Ignite has saved, of which the last may be gone.

    It may have removed a file after its own state was saved, and would fail to remove
    it again.
    """

    def __init__(self, saver: Checkpoint) -> None:
        self._saver = saver

    def state_dict(self) -> Mapping[str, Any]:
        return self._saver.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        there = [one for one in state_dict["_saved"] if self._is_there(one[1])]
        self._saver.load_state_dict({**state_dict, "_saved": there})

    def _is_there(self, name: str) -> bool:
        to = self._saver.save_handler
        if not isinstance(to, DiskSaver):
            return True
        name = (
            getattr(to, "filename", None) or name
        )  # MONAI's may have one name for all
        return Path(to.dirname, name).exists()


@final
class _Search:
    def __init__(self, engine: Engine, known: Iterable[Any]) -> None:
        self._trains = engine
        self._seen = {id(one): one for one in known}
        self._tensors = {
            tensor
            for one in self._seen.values()
            if isinstance(one, nn.Module)
            for tensor in _tensors_of(one)
        }

    def all_below(
        self, *engines: Engine | None
    ) -> Iterator[tuple[str, Stateful | DataLoader[Any]]]:
        """Find what has a state, and data, below some engines."""
        for number, engine in enumerate(engines):
            yield from self.below(engine, f"engine-{number}")

    def below(
        self, part: Any, place: str, depth: int = 0, *, trains: bool = False
    ) -> Iterator[tuple[str, Stateful | DataLoader[Any]]]:
        """Find what has a state in a part and below it.

        Args:
            part: Where to look.
            place: How one came there.
            depth: In so many steps from an engine.
            trains: Whether that is the engine that trains.
        """
        if id(part) in self._seen or depth > _DEPTH or isinstance(part, _DEAD_ENDS):
            return
        self._seen[id(part)] = part
        if isinstance(part, Engine):
            depth, trains = 0, part is self._trains
        yield from self._itself(part, place, trains=trains)
        if not isinstance(part, (nn.Module, DataLoader)) and not _is_stateful(part):
            for name, one in _parts_of(part):
                yield from self.below(one, f"{place}.{name}", depth + 1, trains=trains)

    def _itself(
        self, part: Any, place: str, *, trains: bool
    ) -> Iterator[tuple[str, Stateful | DataLoader[Any]]]:
        if isinstance(part, Engine):
            # a round may be over before all handlers have seen its last batch
            passing = frozenset() if trains else _PASSING
            yield place, _Attributes(part.state, passing | {"dataloader", "device"})
        elif isinstance(part, Metric):
            if trains:  # others begin anew with the next validation
                yield place, _Attributes(part)
                if hasattr(part, "metric_fn"):  # one of MONAI gathers there
                    yield f"{place}.metric_fn", _Attributes(part.metric_fn)
        elif isinstance(part, nn.Module):
            if not _tensors_of(part) <= self._tensors:
                yield place, part
        elif isinstance(part, Checkpoint):
            yield place, _Files(part)
        elif isinstance(part, DataLoader) or _is_stateful(part):
            yield place, part


def _is_stateful(part: Any) -> bool:
    if isinstance(part, (Engine, Metric)):
        return False
    names = ("state_dict", "load_state_dict")
    return all(callable(getattr_static(part, name, None)) for name in names)


def _tensors_of(module: nn.Module) -> set[int]:
    return {id(one) for one in [*module.parameters(), *module.buffers()]}


def _parts_of(part: Any) -> _Parts:
    found: _Parts = ()
    if isinstance(part, Engine):
        found = _parts_of_engine(part)
    elif isinstance(part, MethodType):
        found = [("self", part.__self__), ("function", part.__func__)]
    elif isinstance(part, FunctionType):
        found = _variables_of(part)
    elif isinstance(part, partial):
        found = [("function", part.func), ("given", [*part.args, part.keywords])]
    elif isinstance(part, (list, tuple)):
        found = [(str(number), one) for number, one in enumerate(part[:_MOST_ITEMS])]
    elif isinstance(part, dict):
        found = [(str(name), one) for name, one in islice(part.items(), _MOST_ITEMS)]
    else:
        with suppress(TypeError):  # it has no attributes of its own
            found = list(vars(part).items())
    return found


def _parts_of_engine(engine: Engine) -> _Parts:
    """Return an engine's handlers, its step, and what MONAI's have beside them.

    Ignite 0.5 has no public view of what is attached to an engine.
    """
    yield "step", engine._process_function  # noqa: SLF001 - as above
    for event, handlers in engine._event_handlers.items():  # noqa: SLF001 - as above
        for number, (handler, given, _) in enumerate(handlers):
            yield f"{event}.{number}", handler
            yield f"{event}.{number}.given", given
    for name, one in vars(engine).items():
        if not name.startswith("_") and name != "state":  # it has what passes by
            yield name, one


def _variables_of(function: FunctionType) -> _Parts:
    """Return what a function finds outside of itself, by name."""
    for name, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is not set yet
            continue
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for one in code.co_consts:  # lambdas and comprehensions in it
        if isinstance(one, CodeType):
            yield from _names_in(one)
