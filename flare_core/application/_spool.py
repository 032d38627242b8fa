"""Where models lie while a run is played: a folder that sites may share.

::

    models/HEX.safetensors   a global model, called by its XXH3-128, as on the wire
    models/HEX.delta         what stands for one, encoded against the one before
    models/HEX.memory        what the strategy remembers beside one
    best-N.safetensors       that of round N by another name, if it is the best so far
    updates/SITE.*           the newest update of a site
    updates/late~SITE.*      the same as it counts, if it came late

What is called by its hash is whole, and never changes: it gets its name once it is
written.  Rounds that come to the same model have one file of it.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import final


@final
class Spool:
    """Names the files of a run, for the server and for sites on its machine.

    Args:
        folder: Of this run and of no other.

    Attributes:
        folder: The same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models = folder / "models"
        self._updates = folder / "updates"
        self._lock = threading.Lock()
        self._uses = Counter[Path]()

    @property
    def is_there(self) -> bool:
        """Whether it is on this machine, may be written to, and the run not over."""
        return os.access(self._updates, os.W_OK)

    def make(self) -> None:
        """Make the folders, unless they are there."""
        for folder in (self._models, self._updates):
            folder.mkdir(parents=True, exist_ok=True)

    def clear(self, models: Iterable[bytes] = (), memory: bytes = b"") -> None:
        """Remove what a server left that was killed while it wrote.

        Args:
            models: The streams of the global models that are kept; if there are some,
                updates are, too.
            memory: The XXH3-128 of what the strategy remembers beside the newest.
        """
        kept = set(map(self.model, models))
        if kept:
            kept |= {self.memory(memory), *self._updates.glob("*.safetensors")}
        for path in {*self._models.iterdir(), *self._updates.iterdir()} - kept:
            path.unlink()

    def model(self, stream: bytes) -> Path:
        """Return the file of a global model, by the XXH3-128 of its bytes."""
        return self._models / f"{stream.hex()}.safetensors"

    def delta(self, stream: bytes) -> Path:
        """Return the file of an encoded global model, by the XXH3-128 of its bytes."""
        return self._models / f"{stream.hex()}.delta"

    def memory(self, digest: bytes) -> Path:
        """Return the file of what the strategy remembers, by its XXH3-128."""
        return self._models / f"{digest.hex()}.memory"

    def unfinished(self, what: str) -> Path:
        """Return a file for what has no name before it is written."""
        return self._models / f"{what}.unfinished"

    def put(self, whole: Path, path: Path) -> None:
        """Give a file that is whole its name, which holds it until `drop`.

        One that has this name already stays: it may be on the disk for good.

        Args:
            whole: Where it is.
            path: The name that its hash gives it.
        """
        with self._lock:
            if self._uses[path]:
                whole.unlink()
            else:
                whole.replace(path)
            self._uses[path] += 1

    def hold(self, path: Path) -> None:
        """Hold a file that has its name already, as `put` does."""
        with self._lock:
            self._uses[path] += 1

    def drop(self, path: Path) -> None:
        """Remove a file once nobody holds it; who has mapped it keeps what is in it."""
        with self._lock:
            self._uses[path] -= 1
            if not self._uses[path]:
                del self._uses[path]
                path.unlink(missing_ok=True)

    def best(self, number: int) -> Path:
        """Return the file of a global model that was the best when it was linked."""
        return self.folder / f"best-{number}.safetensors"

    def only_best(self, number: int) -> None:
        """Remove the files of models that are the best no more."""
        for path in set(self.folder.glob("best-*")) - {self.best(number)}:
            path.unlink()

    def update(self, site: str, *, encoded: bool) -> Path:
        """Return the file of a site's update, the same in every round.

        When a site hands in that of the next round, the one before is folded, and
        nobody looks at it any more.  The weights that a run starts from are handed in
        here, too, and become a global model.
        """
        suffix = "encoded" if encoded else "safetensors"
        return self._updates / f"{site}.{suffix}"

    def moved(self, site: str) -> Path:
        """Return the file of a site's update that came late, as it counts."""
        return self._updates / f"late~{site}.safetensors"

    def kept(self, name: str) -> Path:
        """Return the file of an update by its name."""
        return self._updates / name
