"""Has things written down in order, on a thread of its own, and tells when they are."""

from collections.abc import Callable
from typing import TypeAlias, final

from flare_core.application._archive import Archive
from flare_core.application._run_store import RunStore
from flare_core.application._worker import Worker

Write: TypeAlias = Callable[[RunStore], None]
Keep: TypeAlias = Callable[[Archive], None]


@final
class Ledger:
    """Writes to a run's store and archive, if it has some, while the server answers.

    Once something could not be written, nothing more is: what would follow it relies
    on it.

    Args:
        worker: Has a thread for what must wait for a disk.
        archive: Where the plan has models and updates kept, if it does.
    """

    def __init__(self, worker: Worker, archive: Archive | None = None) -> None:
        self._worker = worker
        self._archive = archive
        self._store: RunStore | None = None
        self._failure: Exception | None = None

    def keep_in(self, store: RunStore) -> None:
        """Write to a store from now on."""
        self._store = store

    def write(self, write: Write, then: Callable[[], object] = lambda: None) -> None:
        """Write something, in order, and then do something on the server's thread."""
        store = self._store
        if store is None:
            then()
        else:
            self._do(lambda: write(store), then)

    def keep(self, keep: Keep, then: Callable[[], object] = lambda: None) -> None:
        """Keep something in the archive; in order with what is written."""
        archive = self._archive
        if archive is None:
            then()
        else:
            self._do(lambda: keep(archive), then)

    def _do(self, act: Callable[[], None], then: Callable[[], object]) -> None:
        self._worker.do_aside(lambda: self._unless_failed(act), lambda _: then())

    def _unless_failed(self, act: Callable[[], None]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            act()
        except Exception as exc:
            self._failure = exc
            raise
