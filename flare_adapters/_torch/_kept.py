"""The rounds that a site keeps on its disk, whatever number of ranks it has."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import final

from flare_adapters._torch._checkpoint import (
    RoundCheckpoint,
    Trained,
    keep_random,
    restore_random,
)
from flare_adapters._torch._correction import GradientCorrection
from flare_adapters._torch._ranks import Ranks
from flare_core import Site, UnsupportedError

_log = logging.getLogger(__name__)


@final
class KeptRounds:
    """Saves the round that was trained last, and finds it after a restart.

    A simulated site is never started again: there is nothing to keep.

    Args:
        site: Whose rounds they are.
        run: The run's own name.
        plan: Fingerprint of the run's plan.
        ranks: Of the site.

    Attributes:
        trained: The round that an earlier process has trained last, if there is one.
    """

    def __init__(self, site: Site, run: str, plan: str, ranks: Ranks) -> None:
        folder = Path(site.folder or ".", f"checkpoint-{site.name}-{run}")
        self._checkpoint = RoundCheckpoint(folder) if site.server_key else None
        self._ranks = ranks
        self.trained: Trained | None = ranks.from_first(
            lambda: self._found(site.name, run, plan)
        )

    @property
    def path(self) -> Path | None:
        """The folder of the round that is kept; None if none ever is."""
        return None if self._checkpoint is None else self._checkpoint.path

    def save(
        self,
        trained: Trained,
        correction: GradientCorrection,
        save: Callable[[Path], object],
    ) -> None:
        """Save a round, on all ranks, before anything of it leaves.

        Args:
            trained: The round.
            correction: What goes on from round to round at the site.
            save: Puts the framework's own checkpoint into a folder.
        """
        if self._checkpoint is None:
            return
        folder = self._ranks.from_first(self._checkpoint.begin)
        try:
            save(folder)
        except UnsupportedError as exc:
            _log.warning(
                "round %d is not saved, and would be trained anew: %s",
                trained.round_number,
                exc,
            )
            return
        correction.save(folder / self._file("correction", "pt"))
        keep_random(folder / self._file("random", "json"))
        self._ranks.together()
        checkpoint = self._checkpoint
        self._ranks.from_first(lambda: checkpoint.finish(trained))

    def restore(self, correction: GradientCorrection) -> None:
        """Go back to where the correction was when the round was saved."""
        if self.path is not None:
            correction.restore(self.path / self._file("correction", "pt"))

    def restore_random(self) -> None:
        """Set the generators of random numbers back to where they were."""
        if self.path is not None:
            restore_random(self.path / self._file("random", "json"))

    def remove(self) -> None:
        """Remove what is kept: the run is over."""
        if self._checkpoint is not None:
            self._checkpoint.remove()

    def _found(self, site: str, run: str, plan: str) -> Trained | None:
        if self._checkpoint is None:
            return None
        found = self._checkpoint.found(run=run, plan=plan)
        if found is not None:
            _log.warning(
                "site %r goes on after round %d of run %r, which it has trained; "
                "remove %s to begin anew",
                site,
                found.round_number,
                run,
                self._checkpoint.path,
            )
        return found

    def _file(self, what: str, kind: str) -> str:
        return f"{what}-{self._ranks.number}.{kind}"
