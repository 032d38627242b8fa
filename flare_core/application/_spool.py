"""Where models lie while a run is played: a folder that sites may share."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

_UPDATES = "updates"


@final
@dataclass(frozen=True, slots=True)
class Spool:
    """Names the files of a run, for the server and for sites on its machine.

    Attributes:
        folder: Of this run and of no other.
    """

    folder: Path

    @property
    def is_there(self) -> bool:
        """Whether it is on this machine, may be written to, and the run not over."""
        return os.access(self.folder / _UPDATES, os.W_OK)

    def make(self) -> None:
        """Make the folders, unless they are there."""
        (self.folder / _UPDATES).mkdir(parents=True, exist_ok=True)

    def clear(self, number: int | None) -> None:
        """Remove what a server left that was killed while it wrote.

        Args:
            number: Of the round whose model is kept, and the updates; None if there is
                none.
        """
        kept: set[Path] = set()
        if number is not None:
            updates = (self.folder / _UPDATES).glob("*.safetensors")
            kept = {self.model(number), self.memory(number), *updates}
        for pattern in ("global-*", "strategy-*", f"{_UPDATES}/*"):
            for path in set(self.folder.glob(pattern)) - kept:
                path.unlink()

    def model(self, number: int) -> Path:
        """Return the file of the global model that a round starts from."""
        return self.folder / f"global-{number}.safetensors"

    def best(self, number: int) -> Path:
        """Return the file of a global model that was the best when it was linked."""
        return self.folder / f"best-{number}.safetensors"

    def only_best(self, number: int) -> None:
        """Remove the files of models that are the best no more."""
        for path in set(self.folder.glob("best-*")) - {self.best(number)}:
            path.unlink()

    def memory(self, number: int) -> Path:
        """Return the file of what the strategy remembers beside that model."""
        return self.folder / f"strategy-{number}.safetensors"

    def update(self, site: str, *, encoded: bool) -> Path:
        """Return the file of a site's update, the same in every round.

        When a site hands in that of the next round, the one before is folded, and
        nobody looks at it any more.
        """
        suffix = "encoded" if encoded else "safetensors"
        return self.folder / _UPDATES / f"{site}.{suffix}"
