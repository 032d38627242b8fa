"""Databases of ours: written to all or nothing, looked at without a change."""

import shutil
import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_LOG = "-wal"


@contextmanager
def copied(path: Path) -> Generator[Path]:
    """Yield a copy of a database, with what a crash left in its write-ahead log.

    To open the database itself would write to the folder, even to read it.

    Args:
        path: That of a database which nobody writes to meanwhile.

    Raises:
        OSError: If it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="flare-check-") as folder:
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        log = path.with_name(path.name + _LOG)
        if log.exists():
            shutil.copyfile(log, copy.with_name(log.name))
        yield copy


@contextmanager
def transaction(database: sqlite3.Connection) -> Generator[None]:
    """Have all that is written in the block kept, or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def database_faults(path: Path, schema: str) -> Iterator[str]:
    """Yield what is wrong with a database.

    Args:
        path: Its file; a copy, as it is opened to be written to.
        schema: The statements that make an empty one.
    """
    try:
        with closing(sqlite3.connect(path)) as db:
            for (words,) in db.execute("PRAGMA integrity_check(1)"):
                if words != "ok":
                    yield f"is damaged: {' '.join(str(words).split())}"
            found = _columns(db)
    except sqlite3.Error as exc:
        yield f"is damaged: {exc}"
        return
    with closing(sqlite3.connect(":memory:")) as new:
        new.executescript(schema)
        expected = _columns(new)
    for table in sorted(expected.keys() | found.keys()):
        if expected.get(table) != found.get(table):
            yield (
                f"table {table}: expected columns {expected.get(table, 'none')}, got "
                f"{found.get(table, 'none')}"
            )


def _columns(db: sqlite3.Connection) -> dict[str, str]:
    """Return the names of the columns of each table."""
    tables = db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table'"
    ).fetchall()
    return {
        table: ", ".join(
            name
            for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))
        )
        for (table,) in tables
    }
