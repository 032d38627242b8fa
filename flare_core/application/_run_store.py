"""What of a run outlives the server's process: a database beside the model files.

A row is written once what it tells of is on the disk, and nobody is told of anything
before its row is written.  So whatever moment a server dies at, the next one goes on
from what its sites were told, or from a moment before that they will repeat.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar, final

import msgspec
import xxhash

from flare_core._errors import ConfigurationError
from flare_core._model import Metrics
from flare_core.application._databases import transaction
from flare_core.application._events import RoundRecord, SiteReport
from flare_core.application._publication import Publication
from flare_core.communication import Join, Offer, Parcel, mapped, sync

_FORMAT = 4
NAME = "run.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (format INTEGER, run TEXT, plan TEXT) STRICT;
CREATE TABLE IF NOT EXISTS sites (
    name TEXT PRIMARY KEY, joined BLOB NOT NULL, since INTEGER NOT NULL,
    present INTEGER NOT NULL, refusals INTEGER NOT NULL, metrics BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS updates (
    site TEXT PRIMARY KEY, round INTEGER NOT NULL, offer BLOB NOT NULL,
    file TEXT NOT NULL, digest BLOB NOT NULL, report BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS models (
    number INTEGER PRIMARY KEY, stream BLOB NOT NULL, memory BLOB NOT NULL,
    blake3 TEXT NOT NULL, record BLOB
) STRICT;
"""
_T = TypeVar("_T")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a site stands in a run.

    Attributes:
        join: What it said it would exchange.
        since: The first round that it was invited to; of one that a round opens
            without, the one after that.
        present: Whether it takes part now.
        refusals: How often something of it was refused.
        metrics: Of the final model, if it has left with them.
    """

    join: Join
    since: int = 0
    present: bool = True
    refusals: int = 0
    metrics: Metrics | None = None


class KeptUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An update that was committed.

    Attributes:
        site: Whose.
        offer: What the site said of it; with all bytes, if it is short.
        file: The name of its file; empty for a short one.
        digest: The XXH3-128 of the file as it lies there.
        report: What there is to say of it.
    """

    site: str
    offer: Offer
    file: str
    digest: bytes
    report: SiteReport


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a server finds of a run that another one began.

    Attributes:
        sites: Those who have joined, by name.
        number: The round that is played; None if none was.
        streams: The XXH3-128 of each global model, by number.
        memory: The XXH3-128 of what the strategy remembers beside the newest; empty if
            that is nothing.
        blake3: Hash of that model, if it was on record.
        record: Of the round before, if it has to be put on record yet.
        records: Of the rounds before that are on record, in order.
        updates: Those of the round that are in.
        counted: The last round that an update of each site counted in.
        hashes: Those of the models that are on record, by number.
    """

    sites: Mapping[str, Standing]
    number: int | None
    streams: dict[int, bytes]
    memory: bytes
    blake3: str
    record: RoundRecord | None
    records: list[RoundRecord]
    updates: list[KeptUpdate]
    counted: dict[str, int]
    hashes: dict[int, str]

    def newest(self, count: int) -> dict[int, bytes]:
        """Return the streams of the newest global models, so many at most."""
        return dict(sorted(self.streams.items())[-count:])

    @property
    def cohort(self) -> set[str]:
        """The sites that were invited to the round, those who have left it too."""
        number = self.number or 0
        invited = {name for name, one in self.sites.items() if one.since <= number}
        return invited | {one.site for one in self.updates}

    @property
    def sizes(self) -> dict[str, int]:
        """Examples in the last update of each site that counted."""
        found: dict[str, int] = {}
        for record in self.played:
            found |= {name: one.num_examples for name, one in record.sites.items()}
        return found

    @property
    def played(self) -> list[RoundRecord]:
        """The records of all rounds before."""
        return [*self.records, *filter(None, [self.record])]


@final
class RunStore:
    """The database of one run; after `kept`, for one thread at a time.

    Args:
        folder: That of the run's files.
        run: The run's own name.
        plan: Fingerprint of what is played.

    Raises:
        ConfigurationError: If it cannot be opened, is damaged, or is another run's.
    """

    def __init__(self, folder: Path, *, run: str, plan: str) -> None:
        self._folder = folder
        self._path = folder / NAME
        try:
            with ExitStack() as undo:
                self._db = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False
                )
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._check(run, plan)
                undo.pop_all()
        except sqlite3.Error as exc:
            msg = f"the store of run {run!r}, {self._path}, cannot be opened: {exc}"
            raise ConfigurationError(msg) from exc

    def kept(self) -> Kept | None:
        """Return what is there of the run; None if not all sites had joined yet.

        Raises:
            ConfigurationError: If it cannot be read.
        """
        try:
            return self._kept()
        except (sqlite3.Error, msgspec.DecodeError, ValueError) as exc:
            msg = (
                f"the store {self._path} is damaged: {exc}; restore it from a backup, "
                "or remove the run's folder to give the run up"
            )
            raise ConfigurationError(msg) from exc

    def gathered(self, sites: Mapping[str, Join]) -> None:
        """Keep who takes part: all have joined."""
        with transaction(self._db):
            self._db.execute("DELETE FROM sites")
            for name, join in sites.items():
                self._enter(name, join, since=0)

    def entered(self, site: str, join: Join, *, since: int) -> None:
        """Keep that a site takes part that did not before."""
        self._enter(site, join, since=since)

    def came_back(self, site: str, *, since: int) -> None:
        """Keep that a site is here again."""
        self._db.execute(
            "UPDATE sites SET present = 1, since = ?, metrics = NULL WHERE name = ?",
            (since, site),
        )

    def invited(self, site: str, number: int) -> None:
        """Keep that a site was invited to the round that is played."""
        self._db.execute("UPDATE sites SET since = ? WHERE name = ?", (number, site))

    def left(self, site: str, metrics: Metrics | None, *, refused: bool) -> None:
        """Keep that a site is gone."""
        encoded = None if metrics is None else msgspec.msgpack.encode(metrics)
        self._db.execute(
            "UPDATE sites SET present = 0, metrics = ?, refusals = refusals + ? "
            "WHERE name = ?",
            (encoded, int(refused), site),
        )

    def committed(self, parcel: Parcel, report: SiteReport) -> None:
        """Keep an update: from here on it counts, whatever happens."""
        file, digest = "", b""
        if parcel.path is not None:
            file, digest = parcel.path.name, digest_of(parcel.path)
            sync(parcel.path)
            sync(parcel.path.parent)
        self._db.execute(
            "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?, ?)",
            (
                parcel.site,
                parcel.offer.round_number,
                msgspec.msgpack.encode(parcel.offer),
                file,
                digest,
                msgspec.msgpack.encode(report),
            ),
        )

    def published(
        self,
        number: int,
        model: Publication,
        record: RoundRecord | None,
        cohort: Iterable[str],
    ) -> None:
        """Keep a global model: from here on its round is played, not the one before.

        Args:
            number: The round that starts from it.
            model: It.
            record: Of the round that it came out of.
            cohort: Who is invited.
        """
        file, memory = model.model, model.memory
        files = (file.path, memory and memory.path)
        for path in filter(None, (*files, file.path.parent, self._folder)):
            sync(path)
        encoded = None if record is None else msgspec.msgpack.encode(record)
        with transaction(self._db):
            self._db.execute("DELETE FROM updates")
            self._db.execute(
                "UPDATE sites SET since = iif("
                "name IN (SELECT value FROM json_each(?)), min(since, ?), ?)",
                (msgspec.json.encode(sorted(cohort)).decode(), number, number + 1),
            )
            self._db.execute(
                "INSERT INTO models VALUES (?, ?, ?, '', ?)",
                (number, file.stream, memory.digest if memory else b"", encoded),
            )

    def recorded(self, number: int, blake3: str, record: RoundRecord | None) -> None:
        """Keep the hash of a model, and the record of its round if that has changed."""
        encoded = None if record is None else msgspec.msgpack.encode(record)
        self._db.execute(
            "UPDATE models SET blake3 = ?, record = coalesce(?, record) "
            "WHERE number = ?",
            (blake3, encoded, number),
        )

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def _check(self, run: str, plan: str) -> None:
        """Make the tables, or see that they are this run's."""
        self._db.executescript(SCHEMA)
        expected = (_FORMAT, run, plan)
        found = self._db.execute("SELECT format, run, plan FROM identity").fetchone()
        if found is None:
            self._db.execute("INSERT INTO identity VALUES (?, ?, ?)", expected)
        elif found != expected:
            msg = (
                f"the store {self._path} is of run {found[1]!r}, plan {found[2]}, "
                f"format {found[0]}; expected run {run!r}, plan {plan}, format "
                f"{_FORMAT}: was the folder copied, or flare-adapters changed?"
            )
            raise ConfigurationError(msg)

    def _kept(self) -> Kept | None:
        rows = self._db.execute("SELECT * FROM sites ORDER BY name")
        sites = {
            name: Standing(
                join=msgspec.msgpack.decode(joined, type=Join),
                since=since,
                present=bool(present),
                refusals=refusals,
                metrics=_decoded(metrics, dict[str, float]),
            )
            for name, joined, since, present, refusals, metrics in rows
        }
        if not sites:
            return None
        models = self._db.execute(
            "SELECT number, stream, memory, blake3, record FROM models ORDER BY number"
        ).fetchall()
        played = [
            (blake3, _decoded(encoded, RoundRecord)) for *_, blake3, encoded in models
        ]
        number, _, memory, blake3, _ = (
            models[-1] if models else (None, b"", b"", "", None)
        )
        return Kept(
            sites=sites,
            number=number,
            streams={number: stream for number, stream, *_ in models},
            memory=memory,
            blake3=blake3,
            record=played[-1][1] if played and not blake3 else None,
            records=[one for known, one in played if known and one is not None],
            updates=self._updates(),
            counted={site: one.round for _, one in played if one for site in one.sites},
            hashes={number: blake3 for number, *_, blake3, _ in models if blake3},
        )

    def _updates(self) -> list[KeptUpdate]:
        rows = self._db.execute(
            "SELECT site, offer, file, digest, report FROM updates ORDER BY site"
        )
        return [
            KeptUpdate(
                site=site,
                offer=msgspec.msgpack.decode(offer, type=Offer),
                file=file,
                digest=digest,
                report=msgspec.msgpack.decode(report, type=SiteReport),
            )
            for site, offer, file, digest, report in rows
        ]

    def _enter(self, site: str, join: Join, *, since: int) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO sites VALUES (?, ?, ?, 1, 0, NULL)",
            (site, msgspec.msgpack.encode(join), since),
        )


def digest_of(path: Path) -> bytes:
    """Return the XXH3-128 of a file."""
    return xxhash.xxh3_128_digest(mapped(path))


def check_file(path: Path, what: str, stream: bytes) -> None:
    """Raise if a file is not what it was.

    Args:
        path: The file.
        what: It is, in words.
        stream: Its XXH3-128.

    Raises:
        ConfigurationError: If it is damaged, or gone.
    """
    what = f"{what}, {path},"
    try:
        found = digest_of(path)
    except OSError as exc:
        msg = f"{what} cannot be read: {exc.strerror}; put it back, or stop the run"
        raise ConfigurationError(msg) from exc
    if found != stream:
        msg = (
            f"{what} is damaged: expected XXH3-128 {stream.hex()}, got {found.hex()}; "
            "put it back from a backup, or stop the run"
        )
        raise ConfigurationError(msg)


def _decoded(encoded: bytes | None, kind: type[_T]) -> _T | None:
    return None if encoded is None else msgspec.msgpack.decode(encoded, type=kind)
