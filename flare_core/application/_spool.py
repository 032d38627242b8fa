"""Where models lie while a run is played: a folder that sites may share."""

from dataclasses import dataclass
from pathlib import Path
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Spool:
    """Names the files of a run, for the server and for sites on its machine.

    Attributes:
        folder: Theirs.
    """

    folder: Path

    def model(self, number: int) -> Path:
        """Return the file of the global model that a round starts from."""
        return self.folder / f"global-{number}.safetensors"

    def update(self, site: str, *, encoded: bool) -> Path:
        """Return the file of a site's update, the same in every round.

        When a site hands in the next update, the one before is folded, and nobody
        looks at it any more.
        """
        suffix = "encoded" if encoded else "safetensors"
        return self.folder / "updates" / f"{site}.{suffix}"
