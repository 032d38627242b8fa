"""Every global model of a run and every update in it, kept to derive the models again.

::

    kept.jsonl    which update, and which model, in the order in which they came
    kept/BLAKE3   one of them: a safetensors file that is called by its hash

The updates of a round are kept before the model that they make is known to anybody,
and a model before the round that it came out of is on record.  So a server that is
started again drops what is about the round that it plays and later ones, and finds all
the rest.
"""

import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias, final

import msgspec
from blake3 import blake3

from flare_core._errors import ConfigurationError
from flare_core._model import Layout, ModelState, TensorClass
from flare_core.application._publication import blake3_of
from flare_core.communication import fill_file, pack, sync

INDEX = "kept.jsonl"
FOLDER = "kept"
_UNFINISHED = ".unfinished"
_Hash: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class ModelEntry(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    tag_field="what",
    tag="model",
):
    """A global model that was kept, as a line of ``kept.jsonl``.

    Attributes:
        round: The round that starts from it, or the number of rounds played.
        blake3: Hash of its file, and the file's name.
        buffers: Of the first one: the tensors that are buffers, which no file says.
        controls: Of the first one: the tensors that are controls.
    """

    round: int
    blake3: _Hash
    buffers: list[str] = []
    controls: list[str] = []

    @property
    def classes(self) -> dict[str, TensorClass]:
        """Class of each tensor that is no parameter, and no counter, by name."""
        return {
            **dict.fromkeys(self.buffers, TensorClass.BUFFER),
            **dict.fromkeys(self.controls, TensorClass.CONTROL),
        }


class UpdateEntry(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="what", tag="update"
):
    """An update that was kept, as a line of ``kept.jsonl``.

    Attributes:
        round: The round that it counted in.
        site: Whose.
        num_examples: What it weighed.
        blake3: Hash of its file as it was folded, decoded, and the file's name.
    """

    round: int
    site: str
    num_examples: int
    blake3: _Hash


Entry: TypeAlias = ModelEntry | UpdateEntry


@final
class Archive:
    """Keeps what a run is made of; after `take_up`, for one thread at a time.

    Args:
        record: The folder of the run's record.
        durable: Whether what was kept is to survive a loss of power.
    """

    def __init__(self, record: Path, *, durable: bool) -> None:
        self._index = record / INDEX
        self._folder = record / FOLDER
        self._durable = durable
        self._taken: dict[str, str] = {}

    def make(self, *, exist_ok: bool) -> None:
        """Make the folder, for its owner only: updates are secret."""
        self._folder.mkdir(parents=True, mode=0o700, exist_ok=exist_ok)

    def take_up(self, number: int | None) -> None:
        """Go on in a round that another server was in.

        Args:
            number: Its number; None if none was played.

        Raises:
            ConfigurationError: If what was kept of the rounds before is damaged.
        """
        number = number or 0
        entries = [one for one in self._found(number) if one.round < number]
        models = [one.round for one in entries if isinstance(one, ModelEntry)]
        if models != list(range(number)):
            msg = (
                f"{self._index} is damaged: expected the models of rounds 0 to "
                f"{number - 1}, got {models}; restore it from a backup, or stop the run"
            )
            raise ConfigurationError(msg)
        try:
            self._write(self._index, [_lines(entries)])
            known = {one.blake3 for one in entries}
            for path in self._folder.iterdir():
                if path.name not in known:
                    path.unlink()
        except OSError as exc:
            msg = f"cannot go on with {self._index}: {exc}"
            raise ConfigurationError(msg) from exc

    def take(self, site: str, path: Path | None, weights: ModelState) -> None:
        """Keep an update that may become part of the next model.

        Args:
            site: Whose.
            path: Its file, decoded; it changes no more under this name.
            weights: What is in it; written to a file if there is none.

        Raises:
            ConfigurationError: If it cannot be kept.
        """
        with self._room():
            if path is not None:
                digest = blake3_of(path)
                self._link(path, digest)
            else:
                file = b"".join(pack(weights))
                digest = blake3(file).hexdigest()
                self._write(self._folder / digest, [file])
        self._taken[site] = digest

    def keep_updates(self, number: int, weights: Mapping[str, int]) -> None:
        """Note which updates a round was made of.

        Args:
            number: The round.
            weights: Examples of each site, in the order of the fold.

        Raises:
            ConfigurationError: If it cannot be noted.
        """
        entries = [
            UpdateEntry(
                round=number,
                site=site,
                num_examples=num_examples,
                blake3=self._taken[site],
            )
            for site, num_examples in weights.items()
        ]
        self._taken.clear()
        self._append(entries)

    def keep_model(self, number: int, path: Path, digest: str, layout: Layout) -> None:
        """Keep a global model.

        Args:
            number: The round that starts from it.
            path: Its file.
            digest: The BLAKE3 of the file.
            layout: Of what is in it.

        Raises:
            ConfigurationError: If it cannot be kept.
        """
        with self._room():
            self._link(path, digest)
        kinds = layout.classes.items() if number == 0 else ()
        entry = ModelEntry(
            round=number,
            blake3=digest,
            buffers=[name for name, kind in kinds if kind is TensorClass.BUFFER],
            controls=[name for name, kind in kinds if kind is TensorClass.CONTROL],
        )
        self._append([entry])

    def _found(self, number: int) -> list[Entry]:
        """Return what is in the index; what was being written may be torn."""
        if not number:
            return []
        try:
            lines = self._index.read_bytes().splitlines(keepends=True)
        except OSError as exc:
            msg = (
                f"{self._index}: {exc.strerror}; restore it from a backup, or stop the "
                "run"
            )
            raise ConfigurationError(msg) from exc
        entries: list[Entry] = []
        for line in lines:
            try:
                entries.append(entry_of(line))
            except ValueError:
                break
        return entries

    def _link(self, path: Path, digest: str) -> None:
        kept = self._folder / digest
        link_file(path, kept)
        self._sync(kept)

    def _write(self, path: Path, pieces: list[bytes]) -> None:
        """Write a file that appears when it is whole."""
        unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
        fill_file(unfinished, sum(map(len, pieces)), pieces)
        self._sync(unfinished)
        unfinished.replace(path)

    def _append(self, entries: Iterable[Entry]) -> None:
        with self._room():
            self._sync(self._folder)  # what the lines speak of is there before them
            with self._index.open("ab") as file:
                file.write(_lines(entries))
            self._sync(self._index)
            self._sync(self._index.parent)

    @contextmanager
    def _room(self) -> Generator[None]:
        try:
            yield
        except OSError as exc:
            msg = (
                f"cannot keep what the plan has kept, in {self._folder}: {exc}; give "
                "it room for every global model and every update"
            )
            raise ConfigurationError(msg) from exc

    def _sync(self, path: Path) -> None:
        if self._durable:
            sync(path)


def entry_of(line: bytes) -> Entry:
    """Return what a line of the index says.

    Raises:
        ValueError: If it is no such line, or has no end.
    """
    if not line.endswith(b"\n"):
        msg = "it is torn"
        raise ValueError(msg)
    entry: Entry = msgspec.json.decode(line, type=Entry)
    return entry


def link_file(source: Path, path: Path) -> None:
    """Make a file appear at another place too, or a copy of it where that cannot be."""
    unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
    unfinished.unlink(missing_ok=True)
    try:
        unfinished.hardlink_to(source)
    except OSError:  # on another file system, or one without links
        shutil.copyfile(source, unfinished)
    unfinished.replace(path)
    unfinished.unlink(missing_ok=True)  # it stays if both were the same file before


def _lines(entries: Iterable[Entry]) -> bytes:
    return b"".join(msgspec.json.encode(one) + b"\n" for one in entries)
