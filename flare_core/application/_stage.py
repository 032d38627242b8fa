"""One run on a server, with the threads and files that it needs."""

import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import final

from flare_core._errors import (
    ConfigurationError,
    FlareError,
    ServerUnreachableError,
)
from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application._above import Above
from flare_core.application._archive import Archive
from flare_core.application._distribution import Send
from flare_core.application._events import Observer, RunEnded, RunOpened, RunPaused
from flare_core.application._ledger import Ledger
from flare_core.application._run import Run
from flare_core.application._run_store import RunStore
from flare_core.application._spool import Spool
from flare_core.application._worker import Post, Worker
from flare_core.communication import Welcome
from flare_core.federation import staleness_of

_log = logging.getLogger(__name__)


@final
class Stage:
    """Where a run is played; what goes wrong there ends this run and no other.

    Args:
        name: Of the run.
        plan: What is played.
        spool: The folder for what is underway; it is made, and removed when the run is
            over.
        observer: Told of everything that happens.
        send: How to reach a site of this run.
        post: Has something called on the server's thread.
        ping_s: How often a site says that it lives.
        num_threads: Cores to average on.
        preflight: Whether to compare the sites only.
        share_spool: Whether sites may put their updates into the spool themselves.
        lasting: Whether the run outlives the server, and waits for sites that are gone.
        record: The folder of the run's record, if it has one.
        above: Who this server is at the one above, if it is that of a region.

    Attributes:
        name: Of the run.
        run: What is played.
        error: What went wrong on the server, if something did.
        halted: Why nothing happens for now, if so; another stage goes on later.

    Raises:
        ConfigurationError: If the plan has updates kept, and there is no record.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        spool: Path,
        observer: Observer,
        send: Send,
        post: Post,
        ping_s: float,
        num_threads: int,
        preflight: bool = False,
        share_spool: bool = False,
        lasting: bool = False,
        record: Path | None = None,
        above: Site | None = None,
    ) -> None:
        self.name = name
        self.error: BaseException | None = None
        self._plan = plan
        self._observer = observer
        self._folder = spool
        self._files = Spool(spool / name)
        self.halted = ""
        self._made = self._ended = self._opening = False
        self._lasting = lasting
        self._store: RunStore | None = None
        keeps = plan.keep_updates and not preflight
        self._archive = _archive(record, lasting=lasting) if keeps else None
        self._worker = Worker(
            lambda job: post(lambda: self._deliver(job)), num_threads=num_threads
        )
        self._ledger = Ledger(self._worker, self._archive)
        self._above = None if above is None else Above(above)
        self.run = Run(
            Welcome(plan=plan, run=name, ping_s=ping_s),
            spool=self._files,
            share=share_spool,
            send=send,
            worker=self._worker,
            ledger=self._ledger,
            observer=observer,
            preflight=preflight,
            patient=lasting,
            above=self._above,
        )

    def open(self, endpoint: str) -> None:
        """Make the folders, or go on with those of an earlier server, and say so.

        Raises:
            ConfigurationError: If there is no room for the folders, or what is in them
                is damaged.
        """
        try:
            if self._archive is not None:
                self._archive.make(exist_ok=self._lasting)
            self._folder.mkdir(parents=True, mode=0o700, exist_ok=self._lasting)
            self._files.make()
        except OSError as exc:
            msg = f"cannot make the folder {exc.filename}: {exc.strerror}"
            raise ConfigurationError(msg) from exc
        self._made = self._opening = True
        try:
            self._begin(endpoint)
        except (OSError, sqlite3.Error) as exc:
            msg = f"cannot go on with run {self.name!r}: {exc}"
            raise ConfigurationError(msg) from exc
        self._opening = False

    def _begin(self, endpoint: str) -> None:
        self._observer(RunOpened(self._plan, endpoint))
        if self._lasting:
            plan = self._plan.fingerprint
            self._store = RunStore(self._files.folder, run=self.name, plan=plan)
            self._ledger.keep_in(self._store)
            kept = self._store.kept()
            number = None if kept is None else kept.number
            if kept is None:
                self._files.clear()
            else:
                models = kept.newest(1 + staleness_of(self._plan).most)
                self._files.clear(models.values(), kept.memory)
            if self._archive is not None:
                self._archive.take_up(number)
            if kept is not None:
                self.run.resume(kept)

    def do(self, act: Callable[[], object]) -> None:
        """Do something for this run; on the server's thread only."""
        if self._ended:
            return
        try:
            act()
        except Exception as exc:  # noqa: BLE001 - other runs are to go on
            self.fail(exc)

    def _deliver(self, job: Callable[[], object]) -> None:
        """Have done what follows from a result, unless it is too late."""
        if not self.run.over:
            self.do(job)

    def fail(self, error: BaseException) -> None:
        """End the run because of the server's own failure, or halt it.

        A run that lasts is halted where it may be better later, and nothing of it was
        lost: a disk was full, a file is damaged that may be put back.
        """
        if self._lasting and (self._opening or _may_pass(error)):
            self._halt(error)
            return
        self.error = self.error or error
        _log.error("run %s: the server failed", self.name, exc_info=error)
        self.run.abort(f"the server failed: {type(error).__name__}: {error}")

    def stop(self, reason: str) -> None:
        """End the run for all, halted or not; whatever happens, it does not go on."""
        self._ended, self.halted, self._lasting = False, "", False
        self.do(lambda: self.run.abort(reason))

    def _halt(self, error: BaseException) -> None:
        self.halted = f"{type(error).__name__}: {error}"
        _log.error("run %s is halted, and tried again: %s", self.name, self.halted)
        try:
            self._observer(RunPaused(self.run.number, self.halted))
        except (FlareError, OSError, sqlite3.Error):  # that is full, too
            _log.exception("run %s: that it is halted is not on record", self.name)
        self._ended = True

    def end(self) -> None:
        """Say that the run is over; on the server's thread only, once.

        A run that lasts is halted if that cannot be said, and its end is played again.
        """
        if self._ended:
            return
        if self._made and self.run.over:
            self.do(lambda: self._observer(RunEnded(self.run.result)))
        self._ended = True

    def close(self) -> None:
        """End its threads; after `end`, from any thread.

        The folder is removed, unless the run is to go on with the next server.
        """
        if self._above is not None:
            self._part(self._above)
        self._worker.close()
        self.run.close()
        if self._store is not None:
            self._store.close()
        goes_on = self._lasting and (not self.run.over or bool(self.halted))
        if self._made and not goes_on:  # else the folder is another server's
            shutil.rmtree(self._folder, ignore_errors=True)

    def _part(self, above: Above) -> None:
        """End what is waited for from above: the run is over, or to be gone on with."""
        if self.run.over and not self.halted:
            result = self.run.result
            above.leave(result.metrics, result.error)
        else:
            above.close()


def _archive(record: Path | None, *, lasting: bool) -> Archive:
    if record is None:
        msg = "the plan says keep_updates, and the run has no folder to keep them in"
        raise ConfigurationError(msg)
    return Archive(record, durable=lasting)


def _may_pass(error: BaseException) -> bool:
    """Return whether an error is of the machine or the network, not of the run."""
    kinds = (OSError, sqlite3.OperationalError, ServerUnreachableError)
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)
