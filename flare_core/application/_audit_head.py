"""Where an audit log ends, beside it: ``audit.head``.

The chain alone cannot tell that its last lines were cut off.
"""

import os
from pathlib import Path
from typing import final

import msgspec

from flare_core.application._audit_line import Place


@final
class AuditHead:
    """The newest number and hash of a log; for one process at a time.

    It may be one line behind, after a crash, and is never ahead unless lines are gone.

    Args:
        folder: Of the audit log.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "audit.head"

    def read(self) -> Place | None:
        """Return what was written last; None if it is gone or damaged.

        Raises:
            OSError: If it cannot be read.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Place)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, place: Place, *, sync: bool = False) -> None:
        """Write where the log ends now.

        Args:
            place: There.
            sync: Whether it must survive a loss of power.

        Raises:
            OSError: If it cannot be written.
        """
        unfinished = self._path.with_name(f"{self._path.name}.unfinished")
        with unfinished.open("wb") as file:
            file.write(msgspec.json.encode(place))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(self._path)


def missing(known: Place | None, end: Place) -> str:
    """Return which lines are gone, in words; empty if none that is known of.

    Args:
        known: What ``audit.head`` says.
        end: Where the log ends.
    """
    if known is None:
        return "audit.head is gone or damaged" if end.seq else ""
    if known.seq > end.seq:
        return f"lines are gone: audit.head knows {known.seq} of them"
    if known.seq == end.seq and known.hash != end.hash:
        return f"line {end.seq} is another than the one that audit.head knows"
    return ""
