"""Where an engine is in its data, and how a restart comes back there.

What draws the next batches is an iterator, which cannot be saved.  But it can be made
again: with the random numbers that the first one was made with, and as many batches
taken from it as were taken then.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeAlias, final

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from flare_adapters._torch import random_state, set_random_state

_Generator: TypeAlias = (
    torch.Generator | np.random.RandomState | np.random.Generator | random.Random
)


@final
class DataPosition:
    """Follows an engine through its data.

    Args:
        engine: It has been given its data.
        others: Other data, which may have generators of their own as well.
    """

    def __init__(self, engine: Engine, others: Iterable[Any]) -> None:
        self._engine = engine
        data = [engine.state.dataloader, *others]
        self._generators = list(_generators_in(data, set()))
        self._num_taken = 0
        self._at_start = self._random()
        self._at_first: dict[str, Any] | None = None

    def iterator_starts(self) -> None:
        """Note what the next iterator is made with; right before it is."""
        self._num_taken = 0
        self._at_start, self._at_first = self._random(), None

    def first_batch_starts(self) -> None:
        """Note what the first batch is drawn with, which may be much later."""
        if not self._num_taken:
            self._at_first = self._random()

    def iterator_starts_with_the_run(self) -> None:
        """The same, where an epoch begins; most go on with an iterator."""
        if self._engine._dataloader_iter is None:  # noqa: SLF001 - nothing public says it
            self.iterator_starts()

    def batch_taken(self) -> None:
        """Count a batch."""
        self._num_taken += 1

    def state(self) -> dict[str, Any]:
        """Return the position, and where the generators are that only data use."""
        return {
            "num_taken": self._num_taken,
            "used_up": self._num_taken == _length_of(self._engine),
            "at_start": self._at_start,
            "at_first": self._at_first,
            "now": self._random(),
            "keeps_workers": self._keeps_workers(),
        }

    def go_to(self, state: Mapping[str, Any], *, num_played: int) -> None:
        """Come to a position, in another process.

        Args:
            state: What `state` returned there.
            num_played: Iterations that were played of the epoch, if one is being
                played.
        """
        engine = self._engine
        if state["keeps_workers"]:
            iter(engine.state.dataloader)  # a seed is drawn for them only once
        if not state["used_up"]:
            self._set_random(state["at_start"])
            # where Ignite makes its iterator; from the epoch's beginning, which a
            # DeterministicEngine asks for
            engine.state.iteration -= num_played
            engine._setup_engine()  # noqa: SLF001 - nothing public does it
            engine.state.iteration += num_played
            if state["at_first"] is not None:
                self._set_random(state["at_first"])
            for _ in range(state["num_taken"]):
                next(engine._dataloader_iter)  # noqa: SLF001 - as above
            self._num_taken = state["num_taken"]
            self._at_start, self._at_first = state["at_start"], state["at_first"]
        engine._init_iter = num_played  # noqa: SLF001 - Ignite thinks epochs were whole
        self._set_random(state["now"])

    def _random(self) -> dict[str, Any]:
        return {
            "process": random_state(),
            "data": [_state_of(one) for one in self._generators],
        }

    def _set_random(self, state: Mapping[str, Any]) -> None:
        set_random_state(state["process"])
        for generator, kept in zip(self._generators, state["data"], strict=True):
            _set(generator, kept)

    def _keeps_workers(self) -> bool:
        loader = self._engine.state.dataloader
        keeps = getattr(loader, "persistent_workers", False)
        return bool(keeps) and getattr(loader, "_iterator", None) is not None


def _length_of(engine: Engine) -> int | None:
    """Return how many batches an iterator gives, if anybody knows."""
    data = engine.state.dataloader
    if data is None:
        return engine.state.epoch_length
    try:
        return len(data)
    except TypeError:
        return None


def _generators_in(part: Any, seen: set[int]) -> Iterator[_Generator]:
    """Find the generators that a loader, its sampler and its transforms have."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, _Generator):
        yield part
    elif isinstance(part, (list, tuple)):
        for one in part:
            yield from _generators_in(one, seen)
    elif not isinstance(part, (type, ModuleType, Tensor, nn.Module)):
        for one in getattr(part, "__dict__", {}).values():
            yield from _generators_in(one, seen)


def _state_of(generator: _Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.RandomState):
        name, words, *rest = generator.get_state(legacy=True)
        return [name, np.asarray(words).tobytes(), *rest]
    if isinstance(generator, np.random.Generator):
        return _without_arrays(generator.bit_generator.state)
    return generator.getstate()


def _without_arrays(state: Any) -> Any:
    """Return the state of a bit generator, which takes lists for its arrays too."""
    if isinstance(state, Mapping):
        return {name: _without_arrays(one) for name, one in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _set(generator: _Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.RandomState):
        name, words, *rest = state
        generator.set_state((name, np.frombuffer(words, np.uint32), *rest))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(state)
