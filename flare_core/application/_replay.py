"""Derives the global models of a run again, from the updates that were kept."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import final

from flare_core._errors import ConfigurationError, ProtocolError
from flare_core._model import Layout, ModelState
from flare_core._plan import Plan
from flare_core.application._aggregator import Aggregator
from flare_core.application._archive import (
    FOLDER,
    INDEX,
    Entry,
    ModelEntry,
    UpdateEntry,
    entry_of,
)
from flare_core.application._events import RoundRecord
from flare_core.application._publication import Publication, blake3_of
from flare_core.application._run_store import digest_of
from flare_core.application._server import most_threads
from flare_core.application._spool import Spool
from flare_core.application._worker import Worker
from flare_core.communication import mapped, unpack
from flare_core.federation import Contribution, chosen


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of a round that was derived again.

    Attributes:
        round: Its number.
        num_updates: How many updates are kept of it.
        blake3: Hash of the model that came out; empty if none could.
        partings: Where it parts from the record; nothing if it does not.
    """

    round: int
    num_updates: int
    blake3: str
    partings: tuple[str, ...]


def replay(
    plan: Plan, records: Sequence[RoundRecord], folder: Path
) -> Iterator[Replayed]:
    """Fold the updates of each round again, and compare what comes out.

    A round starts from the model that was derived before it, or from the one that was
    kept where that could not be: so what is wrong with one round is told of it alone.
    Where the strategy has moments, or the aggregation follows the step of the last
    round, which nobody keeps, no later round can be derived.

    Args:
        plan: What was played.
        records: Of the rounds, in order.
        folder: Of the run's record, with what was kept; it is only read.

    Raises:
        ConfigurationError: If nothing was kept, the index is damaged, the strategy or
            the aggregation is not installed or refuses its settings, or there is no
            room for the models.
    """
    kept = _Kept(folder)
    strategy, rule = chosen(plan)
    with (
        tempfile.TemporaryDirectory(prefix="flare-replay-") as workspace,
        closing(Worker(_undelivered, num_threads=most_threads())) as worker,
    ):

        def aggregator(layout: Layout) -> Aggregator:
            spool, each = Spool(Path(workspace)), worker.each
            spool.make()
            return Aggregator(
                plan, layout, strategy=strategy, rule=rule, spool=spool, each=each
            )

        remembers = rule.follows or bool(strategy.moments)
        rounds = _Rounds(kept, aggregator, remembers=remembers)
        for record in records:
            yield rounds.derive(record)


@final
class _Kept:
    """The index of what was kept, and the files.

    Attributes:
        models: The global models, by the round that starts from them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self.models: dict[int, ModelEntry] = {}
        self._updates: dict[int, list[UpdateEntry]] = {}
        for entry in _entries(folder / INDEX):
            if isinstance(entry, ModelEntry):
                self.models[entry.round] = entry
            else:
                self._updates.setdefault(entry.round, []).append(entry)
        self._classes = self.models[0].classes if 0 in self.models else {}

    def updates(self, number: int) -> list[UpdateEntry]:
        """Return the updates of a round, in the order of the fold."""
        return sorted(self._updates.get(number, []), key=lambda one: one.site)

    def path(self, entry: Entry) -> Path:
        """Return the file that an entry tells of."""
        return self._folder / entry.blake3

    def weights(self, entry: Entry) -> ModelState:
        """Return what is in the file that an entry tells of.

        Raises:
            ProtocolError: If it is not what was kept, or no model.
        """
        path = self.path(entry)
        try:
            found = blake3_of(path)
        except FileNotFoundError as exc:
            msg = f"{path} is missing; restore it from a backup"
            raise ProtocolError(msg) from exc
        except OSError as exc:
            msg = f"{path} cannot be read: {exc}"
            raise ProtocolError(msg) from exc
        if found != entry.blake3:
            msg = f"{path} was changed after it was kept: its BLAKE3 is {found}"
            raise ProtocolError(msg)
        return unpack(mapped(path), classes=self._classes)


@final
class _Rounds:
    """Plays rounds from what was kept.

    Args:
        kept: That.
        make: Returns what folds models of a layout.
        remembers: Whether a round goes on from more of the one before than its model.
    """

    def __init__(
        self, kept: _Kept, make: Callable[[Layout], Aggregator], *, remembers: bool
    ) -> None:
        self._kept = kept
        self._make = make
        self._remembers = remembers
        self._aggregator: Aggregator | None = None
        self._derived: Publication | None = None

    def derive(self, record: RoundRecord) -> Replayed:
        """Derive the model that came out of a round, and compare it."""
        number, before = record.round, self._derived
        updates = self._kept.updates(number)
        partings = list(_differences(updates, record))
        base = before or self._kept_model(number, partings)
        weights = [self._update(one, base, partings) for one in updates]
        outcome = self._fold(base, record, weights) if not partings else None
        digest = self._compare(outcome, record, partings)
        self._check_kept(record, partings)
        if before is not None:
            before.discard()
        return Replayed(
            round=number,
            num_updates=len(updates),
            blake3=digest,
            partings=tuple(partings),
        )

    def _kept_model(self, number: int, partings: list[str]) -> Publication | None:
        """Return a model to start from that is not derived."""
        if self._remembers and number:
            partings.append(
                "what the server remembered is unknown: the round before was not "
                "derived"
            )
            return None
        entry = self._kept.models.get(number)
        if entry is None:
            partings.append(f"the model that it starts from is not in {INDEX}")
            return None
        try:
            weights = self._kept.weights(entry)
        except ProtocolError as exc:
            partings.append(f"the model that it starts from: {exc}")
            return None
        if self._aggregator is None:
            self._aggregator = self._make(weights.layout)
        path = self._kept.path(entry)
        return self._aggregator.first(path, digest_of(path))

    def _update(
        self, update: UpdateEntry, base: Publication | None, partings: list[str]
    ) -> ModelState | None:
        try:
            weights = self._kept.weights(update)
        except ProtocolError as exc:
            partings.append(f"site {update.site!r}: its update {exc}")
            return None
        if base is not None and weights.layout != base.weights.layout:
            path = self._kept.path(update)
            partings.append(
                f"site {update.site!r}: its update {path} has another layout than the "
                "model that the round started from"
            )
        return weights

    def _fold(
        self,
        base: Publication | None,
        record: RoundRecord,
        weights: Sequence[ModelState | None],
    ) -> Publication | str | None:
        if base is None or self._aggregator is None:
            return None
        for site, one in zip(sorted(record.sites), weights, strict=True):
            if one is not None:
                update = _contribution(site, record)
                self._aggregator.add(one, update, base.weights)
        return self._aggregator.finish(base)

    def _compare(
        self,
        outcome: Publication | str | None,
        record: RoundRecord,
        partings: list[str],
    ) -> str:
        """Return the hash of what came out; go on from it if it is the right one."""
        self._derived = None
        if not isinstance(outcome, Publication):
            partings += [outcome] if outcome is not None else []
            return ""
        digest = blake3_of(outcome.model.path)
        if digest == record.blake3:
            self._derived = outcome
        else:
            outcome.discard()
            partings.append(
                f"the model differs though all {len(record.sites)} updates are as they "
                f"were kept: expected BLAKE3 {record.blake3}, got {digest}; were the "
                "plan, the record, the strategy or flare-adapters changed since?"
            )
        return digest

    def _check_kept(self, record: RoundRecord, partings: list[str]) -> None:
        """Look at the model that was kept of what came out."""
        entry = self._kept.models.get(record.round + 1)
        if entry is None:
            partings.append(f"the model that came out is not in {INDEX}")
        elif entry.blake3 != record.blake3:
            partings.append(
                f"the model that came out is {record.blake3} on record, and "
                f"{entry.blake3} in {INDEX}"
            )
        else:
            try:
                self._kept.weights(entry)
            except ProtocolError as exc:
                partings.append(f"the model that came out: {exc}")


def _contribution(site: str, record: RoundRecord) -> Contribution:
    report = record.sites[site]
    return Contribution(
        site=site,
        round_number=record.round,
        num_examples=report.num_examples,
        num_steps=report.num_steps,
        metrics=report.metrics,
        global_metrics=report.global_metrics,
    )


def _differences(updates: Sequence[UpdateEntry], record: RoundRecord) -> Iterator[str]:
    """Yield where the index and the record of a round do not agree."""
    times = Counter(one.site for one in updates)
    for site in sorted(times.keys() | record.sites.keys()):
        report = record.sites.get(site)
        if times[site] != 1 or report is None:
            num_records = int(report is not None)
            yield (
                f"site {site!r}: expected one update in {INDEX} and one on record, got "
                f"{times[site]} and {num_records}"
            )
    for one in updates:
        report = record.sites.get(one.site)
        if report is not None and report.num_examples != one.num_examples:
            yield (
                f"site {one.site!r}: {one.num_examples} examples in {INDEX}, and "
                f"{report.num_examples} on record"
            )


def _entries(index: Path) -> Iterator[Entry]:
    try:
        lines = index.read_bytes().splitlines(keepends=True)
    except OSError as exc:
        msg = f"{index}: {exc.strerror}; was the run played with keep_updates = true?"
        raise ConfigurationError(msg) from exc
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # a server was ended while it wrote: it is on no record yet
    for number, line in enumerate(lines, start=1):
        try:
            yield entry_of(line)
        except ValueError as exc:
            msg = f"{index}: line {number} is damaged: {exc}; restore it from a backup"
            raise ConfigurationError(msg) from exc


def _undelivered(job: Callable[[], object]) -> None:
    """Nobody waits for a result: parts are all that is worked on."""
    del job
