"""Whether a server could go on with a run that it, or another one, has begun."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from flare_core._errors import ConfigurationError
from flare_core.application._databases import copied, database_faults
from flare_core.application._run_store import (
    NAME,
    SCHEMA,
    Kept,
    RunStore,
    digest_of,
)
from flare_core.application._spool import Spool


def run_store_faults(spool: Path, *, run: str, plan: str) -> Iterator[str]:
    """Yield what is wrong with the store of a run and with the files it tells of.

    Args:
        spool: The folder for what is underway, of a run that nobody plays now; it is
            only read.
        run: The run's own name.
        plan: Fingerprint of what is played.
    """
    files = Spool(spool / run)
    path = files.folder / NAME
    try:
        with copied(path) as copy:
            faults = [f"{path}: {words}" for words in database_faults(copy, SCHEMA)]
            kept = None if faults else _kept(copy, path, run, plan)
    except OSError as exc:
        yield f"{path}: {exc.strerror}"
        return
    except ConfigurationError as exc:
        yield str(exc)
        return
    yield from faults
    if kept is not None:
        yield from _file_faults(files, kept)


def _kept(copy: Path, path: Path, run: str, plan: str) -> Kept | None:
    try:
        with closing(RunStore(copy.parent, run=run, plan=plan)) as store:
            return store.kept()
    except ConfigurationError as exc:  # it was said of the copy
        raise ConfigurationError(str(exc).replace(str(copy), str(path))) from exc


def _file_faults(files: Spool, kept: Kept) -> Iterator[str]:
    for stream in kept.newest(1).values():
        what = f"the global model of round {kept.number}"
        yield from _fault(what, files.model(stream), stream)
        if kept.memory:
            what = f"what the strategy remembers in round {kept.number}"
            yield from _fault(what, files.memory(kept.memory), kept.memory)
    for update in kept.updates:
        if update.file:
            path = files.kept(update.file)
            yield from _fault(
                f"the update of site {update.site!r}", path, update.digest
            )


def _fault(what: str, path: Path, digest: bytes) -> Iterator[str]:
    try:
        found = digest_of(path)
    except OSError as exc:
        yield f"{what}, {path}: {exc.strerror}"
        return
    if found != digest:
        expected = f"expected XXH3-128 {digest.hex()}, got {found.hex()}"
        yield f"{what}, {path}, is damaged: {expected}"
