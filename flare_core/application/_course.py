"""How far a run goes, and which of its global models is the best."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import final

from msgspec import structs

from flare_core._errors import ConfigurationError
from flare_core._model import Metrics
from flare_core._plan import Plan
from flare_core.application._archive import link_file
from flare_core.application._events import (
    Best,
    BestFound,
    Observer,
    Result,
    RoundRecord,
)
from flare_core.application._publication import Publication
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.federation import Score, Scores

_log = logging.getLogger(__name__)


@final
class Course:
    """Keeps the best global model, and says when no round follows.

    All it goes by are the records of the rounds.  So a server that is started again
    comes to the same end; the file of the best model is there before the record is that
    makes it the best.

    Args:
        plan: What is played.
        spool: For the best model.
        worker: Links its file.
        observer: Told of it.

    Attributes:
        last: How many rounds there are.
        reason: Why the plan has more; empty if it has not.
    """

    def __init__(
        self, plan: Plan, spool: Spool, worker: Worker, observer: Observer
    ) -> None:
        self._plan = plan
        self._scores = Scores(plan.stop)
        self._spool = spool
        self._worker = worker
        self._observer = observer
        self._hashes: dict[int, str] = {}
        self._path = Path()
        self._num_links = 0  # that are not there yet
        self._warned = False
        self.last = plan.rounds
        self.reason = ""

    def resume(self, records: Sequence[RoundRecord], hashes: Mapping[int, str]) -> None:
        """Go on where another server was.

        Args:
            records: Of the rounds before.
            hashes: Of the global models, by number.

        Raises:
            ConfigurationError: If the best model is gone.
        """
        self._hashes |= hashes
        for record in records:
            self._score(record)
        best = self._scores.best
        if best is None:
            return
        path = self._spool.best(best.number)
        if not path.exists():
            msg = (
                f"the best global model, that of round {best.number}, {path}, is gone; "
                "put it back from a backup, or stop the run"
            )
            raise ConfigurationError(msg)
        self.tidy()
        self._tell(best, path)

    def opened(self, path: Path) -> None:
        """Take the file of the model that a round starts from, or the final one."""
        self._path = path

    def made(self, model: Publication, number: int) -> None:
        """Take a model that was made, before a round starts from it."""
        if model.final and number < self._plan.rounds:
            self.last, self.reason = number, "the run above has ended"

    def hashed(self, number: int, blake3: str) -> None:
        """Take the hash of a global model."""
        self._hashes[number] = blake3

    def played(self, record: RoundRecord) -> None:
        """Take what the sites say of the model that a round started from.

        Its file has to be there until all that was given to `Worker.do_aside` before
        is done.
        """
        self._warn(record)
        if self._score(record):
            best, path = self._scores.best, self._spool.best(record.round)
            self._num_links += 1
            link = partial(link_file, self._path, path)
            self._worker.do_aside(link, lambda _: self._linked(best, path))

    def tidy(self) -> None:
        """Remove models that were the best once; the record says so by now."""
        if self._scores.best is not None:
            number = self._scores.best.number
            self._worker.do_aside(partial(self._spool.only_best, number))

    def end(self, result: Result, then: Callable[[Result], object]) -> None:
        """Say how the run ended, once the files of its best models are in place.

        Args:
            result: With the metrics of the final model, which may be the best.
            then: Called with the result, its best model and why it ended early.
        """

        def in_place(_: object) -> None:
            if self._scores.add(result.rounds, result.metrics):
                self._tell(self._scores.best, self._path)
            best = self._best(self._scores.best)
            then(structs.replace(result, best=best, stopped=self.reason))

        if self._num_links:
            self._worker.do_aside(lambda: None, in_place)
        else:
            in_place(None)

    def _best(self, score: Score | None) -> Best | None:
        metric = self._plan.stop.metric
        if score is None or metric is None:
            return None
        return Best(
            number=score.number,
            metric=metric,
            value=score.value,
            blake3=self._hashes[score.number],
        )

    def _linked(self, best: Score | None, path: Path) -> None:
        self._num_links -= 1
        self._tell(best, path)

    def _tell(self, score: Score | None, path: Path) -> None:
        if (best := self._best(score)) is not None:
            self._observer(BestFound(best, path))

    def _score(self, record: RoundRecord) -> bool:
        better = self._scores.add(record.round, record.global_metrics)
        if self._scores.reason and record.round + 1 < self._plan.rounds:
            self.last, self.reason = record.round + 1, self._scores.reason
        return better

    def _warn(self, record: RoundRecord) -> None:
        """Say that nobody reports the metric, once there has been time to."""
        metric = self._plan.stop.metric
        known = metric is None or metric in record.global_metrics
        if known or self._warned or self._scores.best is not None or not record.round:
            return
        self._warned = True
        _log.warning(
            "stop.metric = %r: no site has reported it of a global model up to round "
            "%d; they report %s",
            metric,
            record.round,
            _listed(record.global_metrics),
        )


def _listed(metrics: Metrics) -> str:
    return ", ".join(sorted(metrics)) or "none: scripts have to evaluate global models"
