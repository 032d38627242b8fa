"""What is kept of a run stays whole, whatever a server was ended at."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

import flare_core as flare
from flare_core.application._archive import FOLDER, INDEX, Archive
from flare_core.application._ledger import Ledger
from flare_core.application._publication import blake3_of
from flare_core.application._worker import Worker
from flare_core.communication import file_bytes, pack, write_file

EXAMPLES = {"a": 3, "b": 4}


def _state(value: float) -> flare.ModelState:
    return flare.ModelState({"w": np.full(5, value, np.float32)})


def _play(archive: Archive, folder: Path, numbers: range) -> None:
    """Keep some rounds, as a server does."""
    for number in numbers:
        model = _state(number)
        path = folder / "model"
        write_file(path, file_bytes(model.layout), pack(model))
        archive.keep_model(number, path, blake3_of(path), model.layout)
        for site, num_examples in EXAMPLES.items():
            archive.take(site, None, _state(number + num_examples))
        archive.keep_updates(number, EXAMPLES)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive of two rounds in the folder of the test."""
    archive = Archive(tmp_path, durable=True)
    archive.make(exist_ok=False)
    _play(archive, tmp_path, range(2))
    return archive


def _again(folder: Path, number: int | None) -> Archive:
    """Take up an archive after its server was ended."""
    archive = Archive(folder, durable=True)
    archive.make(exist_ok=True)
    archive.take_up(number)
    return archive


def _contents(folder: Path) -> tuple[bytes, set[str]]:
    return (folder / INDEX).read_bytes(), {p.name for p in (folder / FOLDER).iterdir()}


@pytest.mark.parametrize("number", [None, 0, 1, 2])
@pytest.mark.usefixtures("archive")
def test_rounds_that_are_played_again_are_there_once(
    tmp_path: Path, number: int | None
) -> None:
    before = _contents(tmp_path)

    again = _again(tmp_path, number)
    _play(again, tmp_path, range(number or 0, 2))

    assert _contents(tmp_path) == before


@pytest.mark.usefixtures("archive")
def test_what_a_server_was_writing_is_dropped(tmp_path: Path) -> None:
    before = _contents(tmp_path)
    with (tmp_path / INDEX).open("ab") as file:
        file.write(b'{"what":"model","round":2')
    (tmp_path / FOLDER / ".x.unfinished").write_bytes(b"half")

    _again(tmp_path, 2)

    assert _contents(tmp_path) == before


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"{}\n")])
@pytest.mark.usefixtures("archive")
def test_a_run_does_not_go_on_without_what_was_kept(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(tmp_path / INDEX)

    with pytest.raises(flare.ConfigurationError, match="restore it from a backup"):
        _again(tmp_path, 2)


@pytest.mark.usefixtures("archive")
def test_others_cannot_enter_it(tmp_path: Path) -> None:
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700


@pytest.fixture
def results() -> SimpleQueue[Callable[[], object]]:
    """What a worker delivers."""
    return SimpleQueue()


@pytest.fixture
def worker(results: SimpleQueue[Callable[[], object]]) -> Iterator[Worker]:
    with closing(Worker(results.put, num_threads=1)) as worker:
        yield worker


def test_once_something_could_not_be_kept_nothing_is(
    worker: Worker,
    results: SimpleQueue[Callable[[], object]],
    archive: Archive,
    tmp_path: Path,
) -> None:
    before = _contents(tmp_path)
    ledger = Ledger(worker, archive)

    ledger.keep(lambda archive: archive.take("a", tmp_path / "missing", _state(1)))
    ledger.keep(lambda archive: archive.take("b", None, _state(99)))

    for _ in range(2):
        with pytest.raises(flare.ConfigurationError, match="cannot keep what"):
            results.get(timeout=10)()
    assert _contents(tmp_path) == before
