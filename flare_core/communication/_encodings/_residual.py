"""What top-k could not send, kept on disk until it can.

The file is a sequence of records: length (u32), XXH3-64 of the content (u64), both
little-endian, and the content.  The first is JSON that says whose residual it is; then
comes one per part of each encoded tensor, in the order of the encoded file: its
elements in float64.

Float64, because the residual is a running sum: in float32 each round would lose 6e-8 of
it, while the difference of two float32 numbers is nearly always exact in float64.  It
costs 8 bytes per element twice, on a site's disk, and never in its memory.
"""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NoReturn, final

import msgspec
import numpy as np
import xxhash

from flare_core._errors import ConfigurationError
from flare_core._model import Array, Layout
from flare_core.communication._encodings._disk import on_disk
from flare_core.communication._files import sync

_DOUBLE = np.dtype("<f8")
_PREFIX_BYTES = 12
_LENGTH_BYTES = 4
_MOST_OWNER_BYTES = 65_536


class _Owner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    residual_format: int = 1
    run: str
    layout: str


@final
class Residual:
    """Error feedback that survives a restart of the site.

    Args:
        folder: Where the files are; it is made if there is none.
        site: The site's name.
        run: The run's; a site may take part in several at once, and what another one
            of that name left is not used.
    """

    def __init__(self, folder: Path, *, site: str, run: str) -> None:
        self._path = folder / f"{site}-{run}.residual"
        self._next_path = self._path.with_name(f"{self._path.name}.next")
        self._unfinished_path = self._path.with_name(f"{self._path.name}.unfinished")
        self._run = run
        self._complete = False

    def commit(self) -> None:
        """Make what the last encoded update left the residual, for good and at once.

        Call it when the update has been accepted.  Without it, the next update is
        encoded as if this one had never been.  A second call does nothing.

        Raises:
            ConfigurationError: If the file system refuses.
        """
        if not self._complete:
            return
        with on_disk(self._path):
            self._next_path.replace(self._path)
            sync(self._path.parent)
        self._complete = False

    def commit_earlier(self) -> None:
        """Do as `commit` for the last update of an earlier process of this site.

        Call it when that update was accepted, and the process died before it knew.

        Raises:
            ConfigurationError: If the file is damaged, or the file system refuses.
        """
        with on_disk(self._path), ExitStack() as files:
            try:
                file = files.enter_context(self._next_path.open("rb"))
            except FileNotFoundError:  # it knew
                return
            owner = _Records(self._next_path, file).owner()
            self._complete = owner.run == self._run
        self.commit()

    def remove(self) -> None:
        """Forget it: the run is over.

        Raises:
            ConfigurationError: If the file system refuses.
        """
        with on_disk(self._path):
            for path in (self._path, self._next_path, self._unfinished_path):
                path.unlink(missing_ok=True)
        self._complete = False

    @contextmanager
    def next_one(self, layout: Layout) -> Generator["Feedback"]:
        """Give an update what is left of earlier ones, and keep what it leaves.

        Args:
            layout: That of the model.

        Raises:
            ConfigurationError: If the file is damaged or belongs to another model, or
                the file system refuses.
        """
        self._complete = False
        owner = _Owner(run=self._run, layout=layout.hash)
        with ExitStack() as files:
            files.enter_context(on_disk(self._path))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            earlier = _Records.of(self._path, owner, files)
            self._next_path.unlink(missing_ok=True)
            following = files.enter_context(self._unfinished_path.open("wb"))
            _append(following, msgspec.json.encode(owner))
            yield Feedback(earlier, following)
            if earlier is not None:
                earlier.end()
            following.flush()
            os.fsync(following.fileno())
            self._unfinished_path.replace(self._next_path)
        self._complete = True


@final
class Feedback:
    """The residual before an update, to read, and the one after it, to write."""

    def __init__(self, earlier: "_Records | None", following: IO[bytes]) -> None:
        self._earlier = earlier
        self._following = following

    def carried(self, count: int, /) -> Array:
        """Return what earlier updates left of the next elements."""
        if self._earlier is None:
            return np.zeros(count)
        return np.frombuffer(self._earlier.take(count * _DOUBLE.itemsize), _DOUBLE)

    def leave(self, lost: Array, /) -> None:
        """Keep what this update leaves of them; nothing where it is not finite.

        An update that is not finite is refused, and its residual never used; if it is
        used nevertheless, it does not spoil all later updates.
        """
        finite = np.isfinite(lost)
        kept = lost if finite.all() else np.where(finite, lost, 0.0)
        _append(self._following, kept.astype(_DOUBLE, copy=False).tobytes())


@final
class _Records:
    """Reads a file of records, and finds out whether it is damaged."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file

    @classmethod
    def of(cls, path: Path, owner: _Owner, files: ExitStack) -> "_Records | None":
        """Return the records after the owner's, or None if this run has none."""
        try:
            records = cls(path, files.enter_context(path.open("rb")))
        except FileNotFoundError:
            return None
        found = records.owner()
        if found.run != owner.run:
            return None
        if found != owner:
            records.refuse(f"layout {owner.layout}", f"layout {found.layout}")
        return records

    def owner(self) -> _Owner:
        """Return whose residual it is."""
        raw = self.take(None)
        try:
            return msgspec.json.decode(raw, type=_Owner)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            self.refuse("the name of a run", str(exc))

    def take(self, expected: int | None) -> bytes:
        """Return the content of the next record, which has so many bytes."""
        prefix = self._file.read(_PREFIX_BYTES)
        length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
        if length != expected and (expected or length > _MOST_OWNER_BYTES):
            self.refuse(f"a record of {expected or 'few'} bytes", f"{length}")
        content = self._file.read(length)
        if prefix != _prefix(content):
            self.refuse("a record with its checksum", "another content")
        return content

    def end(self) -> None:
        """Check that nothing follows."""
        if self._file.read(1):
            self.refuse("the end of the file", "more bytes")

    def refuse(self, expected: str, got: str) -> NoReturn:
        """Say what is wrong with the file."""
        msg = (
            f"residual file {self._path}: expected {expected}, got {got}; delete it to "
            "go on without what topk has not sent yet"
        )
        raise ConfigurationError(msg)


def _append(file: IO[bytes], content: bytes) -> None:
    file.write(_prefix(content))
    file.write(content)


def _prefix(content: bytes) -> bytes:
    digest = xxhash.xxh3_64_intdigest(content).to_bytes(8, "little")
    return len(content).to_bytes(_LENGTH_BYTES, "little") + digest
