"""What a server must not forget: members, invitations and runs, in SQLite."""

import sqlite3
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

from flare_core._errors import ConfigurationError
from flare_core._plan import Plan
from flare_core.application import transaction
from flare_core.communication import Member, Role, RunInfo, State

SCHEMA = """
CREATE TABLE IF NOT EXISTS members (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, since REAL NOT NULL, revoked REAL
);
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, since REAL NOT NULL, expires REAL
);
CREATE TABLE IF NOT EXISTS invitations (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, creator TEXT NOT NULL,
    expires REAL NOT NULL, used REAL
);
CREATE TABLE IF NOT EXISTS runs (
    name TEXT PRIMARY KEY, plan BLOB NOT NULL, creator TEXT NOT NULL,
    created REAL NOT NULL, state TEXT NOT NULL, rounds INTEGER NOT NULL DEFAULT 0,
    blake3 TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT ''
);
"""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """An invitation as the server knows it.

    Attributes:
        key: The public key that its token stands for.
        name: Whom it is for.
        role: His role.
        expires: Until when it holds, in seconds since 1970.
        used: When it was used, if it was.
    """

    key: str
    name: str
    role: Role
    expires: float
    used: float | None


@final
class Store:
    """The database of a server; for one thread, one server at a time.

    Args:
        path: The file; it is made if it does not exist.

    Raises:
        ConfigurationError: If it is no such database, or another server has it.
    """

    def __init__(self, path: Path) -> None:
        try:
            with ExitStack() as undo:
                self._db = sqlite3.connect(path, isolation_level=None)
                undo.callback(self._db.close)
                path.chmod(0o600)
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(SCHEMA)
                undo.pop_all()
        except (sqlite3.Error, OSError) as exc:
            msg = f"store {path}: {exc}; is another server running on this folder?"
            raise ConfigurationError(msg) from exc

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def members(self) -> list[Member]:
        """Return all members, the revoked ones too, by name, with keys that hold."""
        keys: dict[str, list[str]] = {}
        for key, name, expires in self.all_keys():
            if expires is None or expires > time.time():
                keys.setdefault(name, []).append(key)
        rows = self._db.execute(
            "SELECT name, role, since, revoked FROM members ORDER BY name"
        )
        return [
            Member(
                name=n, role=role, since=since, revoked=revoked, keys=keys.get(n, [])
            )
            for n, role, since, revoked in rows
        ]

    def all_keys(self) -> list[tuple[str, str, float | None]]:
        """Return all keys: the key, whose it is, and when it expires."""
        return list(self._db.execute("SELECT key, name, expires FROM keys"))

    def invitations(self) -> list[Invited]:
        """Return all invitations, those used or expired too."""
        rows = self._db.execute(
            "SELECT key, name, role, expires, used FROM invitations"
        )
        return [
            Invited(key=key, name=name, role=role, expires=expires, used=used)
            for key, name, role, expires, used in rows
        ]

    def invite(self, invited: Invited, *, creator: str) -> None:
        """Keep an invitation."""
        self._db.execute(
            "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, NULL)",
            (invited.key, invited.name, invited.role, creator, invited.expires),
        )

    def enrol(self, name: str, role: Role, key: str) -> None:
        """Make somebody a member, and all invitations for him void, in one step."""
        now = time.time()
        with transaction(self._db):
            self._db.execute(
                "INSERT INTO members VALUES (?, ?, ?, NULL) ON CONFLICT (name) "
                "DO UPDATE SET role = excluded.role, since = excluded.since, "
                "revoked = NULL",
                (name, role, now),
            )
            self._db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, NULL) ON CONFLICT (key) "
                "DO UPDATE SET name = excluded.name, since = excluded.since, "
                "expires = NULL",
                (key, name, now),
            )
            self._db.execute(
                "UPDATE invitations SET used = ? WHERE name = ? AND used IS NULL",
                (now, name),
            )

    def add_key(self, name: str, key: str, *, old_until: float) -> None:
        """Give a member another key; the ones before expire, or are gone."""
        now = time.time()
        with transaction(self._db):
            self._db.execute(
                "DELETE FROM keys WHERE name = ? AND expires <= ?", (name, now)
            )
            self._db.execute(
                "UPDATE keys SET expires = min(ifnull(expires, ?), ?) WHERE name = ?",
                (old_until, old_until, name),
            )
            self._db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, NULL)", (key, name, now)
            )

    def revoke(self, name: str) -> None:
        """End a member's keys, and invitations that are open for him."""
        with transaction(self._db):
            now = time.time()
            self._db.execute(
                "UPDATE members SET revoked = ? WHERE name = ?", (now, name)
            )
            self._db.execute("UPDATE keys SET expires = ? WHERE name = ?", (now, name))
            self._db.execute(
                "UPDATE invitations SET used = ? WHERE name = ? AND used IS NULL",
                (now, name),
            )

    def add_run(self, info: RunInfo) -> None:
        """Keep a new run."""
        self._db.execute(
            "INSERT INTO runs (name, plan, creator, created, state) VALUES (?,?,?,?,?)",
            (
                info.name,
                msgspec.json.encode(info.plan),
                info.creator,
                info.created,
                info.state,
            ),
        )

    def update_run(
        self, name: str, state: State, *, rounds: int, blake3: str, error: str = ""
    ) -> None:
        """Keep how a run stands."""
        self._db.execute(
            "UPDATE runs SET state = ?, rounds = ?, blake3 = ?, error = ? "
            "WHERE name = ?",
            (state, rounds, blake3, error, name),
        )

    def runs(self) -> list[RunInfo]:
        """Return all runs, in the order they were made."""
        rows = self._db.execute(
            "SELECT name, plan, creator, created, state, rounds, blake3, error "
            "FROM runs ORDER BY created, name"
        )
        return [
            RunInfo(
                name=name,
                plan=msgspec.json.decode(plan, type=Plan),
                creator=creator,
                created=created,
                state=state,
                rounds=rounds,
                blake3=blake3,
                error=error,
            )
            for name, plan, creator, created, state, rounds, blake3, error in rows
        ]
