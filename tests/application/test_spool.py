"""What is called by its hash is that, and is there for as long as a round needs it."""

import tempfile
from pathlib import Path
from typing import final

import numpy as np
import pytest
import xxhash
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from averaging import Averaging
from flare_core import Encoding, Plan
from flare_core._plan import EncodingDown
from flare_core.application._spool import Spool
from flare_core.federation import FedAdam, FedAvg

_LONG = {"w": np.linspace(0, 1, 100_000, dtype=np.float32)}
"""Too long to go along with what announces it: it is encoded."""


def _made(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.make()
    return spool


def _put(spool: Spool, content: bytes) -> Path:
    """Put a model there as a round does; return its file."""
    unfinished = spool.unfinished("model")
    unfinished.write_bytes(content)
    path = spool.model(xxhash.xxh3_128_digest(content))
    spool.put(unfinished, path)
    return path


@final
class ModelsComeAndGo(RuleBasedStateMachine):
    """Rounds come to models, some to the same, and are over in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._spool = _made(Path(self._folder.name))
        self._needed: list[Path] = []

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(content=st.sampled_from([b"one", b"another", b"third"]))
    def come(self, content: bytes) -> None:
        self._needed.append(_put(self._spool, content))

    @precondition(lambda self: self._needed)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self._needed))
        self._needed.remove(path)
        self._spool.drop(path)

    @invariant()
    def what_is_needed_is_there_and_nothing_else(self) -> None:
        there = {one for one in self._spool.folder.rglob("*") if one.is_file()}
        assert there == set(self._needed)
        for path in there:
            assert path.stem == xxhash.xxh3_128_hexdigest(path.read_bytes())


test_models_are_there_for_as_long_as_a_round_needs_them = ModelsComeAndGo.TestCase


def test_the_same_model_again_leaves_the_file_that_may_be_on_the_disk_for_good(
    tmp_path: Path,
) -> None:
    spool = _made(tmp_path)
    before = _put(spool, b"model").stat()

    after = _put(spool, b"model").stat()

    assert after.st_ino == before.st_ino


@pytest.mark.parametrize("down", ["none", "int8", "xor"])
def test_all_that_a_round_comes_to_is_called_by_its_hash(
    tmp_path: Path, down: EncodingDown
) -> None:
    plan = Plan(rounds=1, encoding=Encoding(down=down))
    rounds = Averaging(tmp_path, FedAdam(), _LONG, plan=plan)

    rounds.play(({"w": _LONG["w"] + np.float32(1)}, 1))

    files = list((tmp_path / "models").iterdir())
    kinds = {".safetensors", ".memory"} | ({".delta"} if down != "none" else set())
    assert {one.suffix for one in files} == kinds
    assert len(files) == len(kinds)
    for one in files:
        assert one.stem == xxhash.xxh3_128_hexdigest(one.read_bytes())


def test_a_model_that_a_round_leaves_as_it_is_stays_until_the_next_is_over_too(
    tmp_path: Path,
) -> None:
    rounds = Averaging(tmp_path, FedAvg(), _LONG)
    rounds.play((_LONG, 1))
    older = rounds.current
    rounds.play((_LONG, 1))
    newer = rounds.current
    assert newer.model.path == older.model.path

    older.discard()
    assert newer.model.path.exists()
    newer.discard()
    assert not newer.model.path.exists()


def test_what_no_record_names_is_cleared(tmp_path: Path) -> None:
    spool = _made(tmp_path)
    update = spool.update("a", encoded=False)
    kept = [spool.model(bytes(16)), spool.memory(bytes(16)), update]
    left = [
        spool.model(b"other" + bytes(11)),
        spool.memory(b"other" + bytes(11)),
        spool.delta(bytes(16)),
        spool.unfinished("model"),
        spool.update("a", encoded=True),
    ]
    for path in (*kept, *left):
        path.touch()

    spool.clear([bytes(16)], bytes(16))

    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)
    spool.clear()
    assert not any(path.exists() for path in kept)
