import gc

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from flare_core import ModelState
from flare_core._model import Array
from flare_core.application._mirror import Mirror, Mirrors
from flare_core.communication import pack, unpack

_SIZE = 1 << 16


def _address(mirror: Mirror) -> int:
    return int(np.frombuffer(mirror.file, np.uint8).ctypes.data)


def _filled(mirror: Mirror, value: float) -> ModelState:
    """Receive a model into memory, and return it."""
    frames = pack(ModelState({"w": np.full(8, value), "v": np.full(8, -value)}))
    mirror.write(0, frames[:1])
    mirror.write(len(frames[0]), frames[1:])
    return unpack(mirror.file[: sum(map(len, frames))])


def test_what_was_written_is_read_and_cannot_be_written_to() -> None:
    mirror = Mirrors().take(8)

    mirror.write(5, [b"fgh"])
    mirror.write(0, [b"ab", b"", b"cde"])

    assert bytes(mirror.file) == b"abcdefgh"
    assert mirror.file.readonly
    mirror.write_all(memoryview(b"stuvwxyz")[i : i + 3] for i in (0, 3, 6))
    assert bytes(mirror.file) == b"stuvwxyz"


def test_memory_is_used_again_when_nobody_looks_at_it() -> None:
    mirrors = Mirrors()
    mirror = mirrors.take(_SIZE)
    address = _address(mirror)

    del mirror

    assert _address(mirrors.take(_SIZE)) == address
    assert _address(mirrors.take(_SIZE // 2)) == address


def test_two_models_are_never_in_the_same_memory() -> None:
    mirrors = Mirrors()

    first, second = mirrors.take(_SIZE), mirrors.take(_SIZE)

    assert abs(_address(first) - _address(second)) >= _SIZE


def test_memory_is_not_used_again_while_one_array_of_a_model_is_looked_at() -> None:
    mirrors = Mirrors()
    model = _filled(mirrors.take(_SIZE), 1)
    kept: Array = model["w"][3:].reshape(-1, 1)[::2].T
    del model

    _filled(mirrors.take(_SIZE), 2)

    assert kept.tolist() == [[1, 1, 1]]


def test_a_model_that_outgrew_the_memory_gets_larger_one() -> None:
    mirrors = Mirrors()
    del [mirrors.take(_SIZE)][0]

    larger = mirrors.take(2 * _SIZE)

    larger.write(2 * _SIZE - 1, [b"z"])
    assert len(larger.file) == 2 * _SIZE
    assert bytes(larger.file[-1:]) == b"z"


def test_room_for_nothing() -> None:
    mirror = Mirrors().take(0)

    mirror.write(0, [b""])

    assert bytes(mirror.file) == b""


class Models(RuleBasedStateMachine):
    """However models are received and forgotten, one that is held never changes."""

    @initialize()
    def begin(self) -> None:
        self.mirrors = Mirrors()
        self.received = 0
        self.whole: dict[int, ModelState] = {}
        self.parts: dict[int, Array] = {}

    @rule()
    def receive(self) -> None:
        mirror = self.mirrors.take(_SIZE)
        self.received += 1
        self.whole[self.received] = _filled(mirror, self.received)

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def keep_a_part(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.whole)))
        self.parts[number] = self.whole.pop(number)["w"][2:]

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        del self.whole[data.draw(st.sampled_from(sorted(self.whole)))]

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def forget_a_part(self, data: st.DataObject) -> None:
        del self.parts[data.draw(st.sampled_from(sorted(self.parts)))]

    @invariant()
    def what_is_held_is_what_arrived(self) -> None:
        for number, model in self.whole.items():
            assert model["w"].tolist() == [number] * 8
            assert model["v"].tolist() == [-number] * 8
        for number, part in self.parts.items():
            assert part.tolist() == [number] * 6


TestModels = Models.TestCase
TestModels.settings = settings(max_examples=30)


def test_rounds_that_keep_one_model_take_turns_in_two_places() -> None:
    mirrors = Mirrors()
    addresses: set[int] = set()
    model = ModelState({})

    for number in range(10):
        mirror = mirrors.take(_SIZE)
        addresses.add(_address(mirror))
        model = _filled(mirror, number)
        del mirror

    gc.collect()
    assert model["w"].tolist() == [9] * 8
    assert len(addresses) <= 2
