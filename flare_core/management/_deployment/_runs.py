"""The runs of a server: made, played, stopped, and read."""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import final

import msgspec

from flare_core._errors import ConfigurationError, FlareError, RequestDeniedError
from flare_core._plan import Plan
from flare_core._site import Site
from flare_core.application import (
    Event,
    Finished,
    Host,
    Observer,
    Published,
    RoundPlayed,
    RunEnded,
    RunPaused,
    RunResumed,
    RunTakenUp,
    SiteJoined,
    SiteLeft,
    SiteRefused,
    Stage,
)
from flare_core.communication import CHUNK_BYTES, Piece, RunFile, RunInfo, State
from flare_core.management._deployment._quiet import Quiet
from flare_core.management._deployment._store import Store
from flare_core.management._deployment._trail import Trail
from flare_core.management._line_display import lines
from flare_core.management._run_folder import GLOBAL, RunFolder, read_rounds

_log = logging.getLogger(__name__)
OPEN: tuple[State, ...] = ("waiting", "playing", "paused")
SPOOL = "spool"
ABOVE = "the server above"
"""Who has created the run of a region; no member is called so."""


@final
class Runs:
    """Opens runs on a host and keeps how they stand; for the server's thread.

    Args:
        host: Plays them.
        store: Where they are kept.
        folder: Gets a folder for each.
        trail: Told of what happens.
        changed: Called when there may be news for who waits for some.
        part_in: Returns who this server is above, in a run of that name, if it is that
            of a region.
    """

    def __init__(
        self,
        host: Host,
        store: Store,
        folder: Path,
        trail: Trail,
        changed: Callable[[], None],
        *,
        part_in: Callable[[str], Site] | None = None,
    ) -> None:
        self._host = host
        self._store = store
        self._folder = folder
        self._trail = trail
        self._changed = changed
        self._part_in = part_in
        self._infos = {info.name: info for info in store.runs()}

    def reopen(self) -> None:
        """Open again what waited or was played when the server ended.

        Raises:
            ConfigurationError: If one is a part of a run above, and there is no server
                above any more.
        """
        for info in self.all():
            if info.state in OPEN:
                if info.creator == ABOVE and self._part_in is None:
                    msg = (
                        f"run {info.name!r} is a part of one of the server above, and "
                        "server.toml has no table [region] any more: put it back"
                    )
                    raise ConfigurationError(msg)
                try:
                    stage = self._stage(info)
                except FlareError as exc:  # a strategy that was uninstalled, say
                    self._keep(info.name, state="failed", error=str(exc))
                    continue
                try:
                    self._host.begin(stage)
                except FlareError as exc:  # its files are kept, and it is tried again
                    stage.fail(exc)

    def create(self, name: str, plan: Plan, *, creator: str) -> None:
        """Open a run for sites to join.

        Raises:
            RequestDeniedError: If there was one of that name, or the plan is no good.
        """
        # Its record is a folder, and not everywhere does case count in a folder's name.
        known = next((one for one in self.all() if _same(one.name, name)), None)
        if known is not None:
            if (known.name, known.plan, known.creator) == (name, plan, creator):
                return  # asked twice
            msg = (
                f"a run is called {known.name!r} already, and a name is for ever; "
                "choose another one with --name"
            )
            raise RequestDeniedError(msg)
        info = RunInfo(
            name=name, plan=plan, state="waiting", creator=creator, created=time.time()
        )
        self._trail.note("run created", run=name, user=creator, plan=plan.fingerprint)
        self._infos[name] = info
        try:
            self._begin(info)
        except FlareError as exc:
            del self._infos[name]
            raise RequestDeniedError(str(exc)) from exc
        except BaseException:  # the server's own failure: it will be looked into
            del self._infos[name]
            raise
        self._store.add_run(info)
        self._changed()

    def stop(self, name: str, reason: str, *, user: str) -> None:
        """End a run for all.

        Raises:
            RequestDeniedError: If it is none, or is over.
        """
        stage = self._host.stage(name)
        info = self.info(name)
        if stage is None or info.state not in OPEN:
            msg = f"run {name!r} is {info.state} already"
            raise RequestDeniedError(msg)
        self._trail.note("run stopped", run=name, user=user, reason=reason)
        stage.stop(f"stopped by {user}: {reason}")
        self._keep(name, state="stopped", error=f"stopped by {user}: {reason}")

    def all(self) -> list[RunInfo]:
        """Return all runs, in the order they were made."""
        return list(self._infos.values())

    def info(self, name: str) -> RunInfo:
        """Return how a run stands.

        Raises:
            RequestDeniedError: If there is none of that name.
        """
        if name not in self._infos:
            known = ", ".join(self._infos) or "none"
            msg = f"no run is called {name!r}; there are {known}"
            raise RequestDeniedError(msg)
        return self._infos[name]

    def awaiting(self, site: str) -> list[str]:
        """Return the runs that a site may join."""
        stages = ((name, self._host.stage(name)) for name in self._infos)
        return [
            name
            for name, stage in stages
            if stage is not None and stage.run.lobby.awaits(site)
        ]

    def finished(self, name: str, site: str) -> Finished | None:
        """Return a run that went well, if this site was in one of its rounds."""
        info = self._infos.get(name)
        if info is None or info.state != "finished":
            return None
        folder = self._folder / name
        if not any(site in one.sites for one in read_rounds(folder)):
            return None
        return Finished(name, info.plan, info.rounds, folder / GLOBAL)

    def read(self, name: str, file: RunFile, offset: int) -> Piece:
        """Return a piece of a file of a run's record.

        Raises:
            RequestDeniedError: If it is not there (yet).
        """
        info = self.info(name)
        growing = info.state in OPEN
        try:
            with (self._folder / name / file).open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                opened.seek(offset)
                content = opened.read(CHUNK_BYTES // 2)
        except OSError as exc:
            msg = f"run {name!r} is {info.state} and has no {file} ({exc.strerror})"
            raise RequestDeniedError(msg) from exc
        return Piece(content=content, size=size, growing=growing)

    def _begin(self, info: RunInfo) -> None:
        """Open a new run."""
        stage = self._stage(info)
        try:
            self._host.begin(stage)
        except FlareError as exc:
            stage.stop(str(exc))
            raise

    def _stage(self, info: RunInfo) -> Stage:
        """Return where a run is played from now on."""
        folder = self._folder / info.name
        record = RunFolder(folder)
        progress = _progress(folder / "progress.log", info.plan)

        def observe(event: Event) -> None:
            record(event)
            progress(event)
            self._trail.event(info.name, event)
            self._follow(info.name, event)
            self._changed()

        part_in = self._part_in if info.creator == ABOVE else None
        return self._host.open(
            info.name,
            info.plan,
            spool=folder / SPOOL,
            observer=observe,
            lasting=True,
            record=folder,
            above=part_in and part_in(info.name),
        )

    def _follow(self, name: str, event: Event) -> None:
        info = self._infos.get(name)
        if info is None:  # it could not be made
            return
        match event:
            case SiteJoined():
                self._infos[name] = _with(info, sites=sorted({*info.sites, event.site}))
            case SiteLeft():
                self._infos[name] = _without(info, event.site)
            case SiteRefused():
                self._infos[name] = _without(info, event.refusal.site)
            case Published():
                state = "paused" if info.state == "paused" else "playing"
                self._keep(name, state=state, blake3=event.blake3)
            case RoundPlayed():
                self._keep(name, rounds=event.record.round + 1)
            case RunPaused():
                self._keep(name, state="paused", error=event.reason)
            case RunResumed() | RunTakenUp():
                self._keep(name, state="playing", error="")
            case RunEnded() if info.state in OPEN:
                error = event.result.error
                self._keep(name, state="failed" if error else "finished", error=error)
            case _:
                pass

    def _keep(self, name: str, **changes: str | int) -> None:
        info = self._infos[name] = _with(self._infos[name], **changes)
        self._store.update_run(
            name, info.state, rounds=info.rounds, blake3=info.blake3, error=info.error
        )


def _progress(path: Path, plan: Plan) -> Observer:
    """Return an observer that writes a line for all that one wants to watch.

    Of what a site makes happen as often as it likes it writes a few lines a minute.
    """
    quiet: defaultdict[tuple[type[Event], str], Quiet] = defaultdict(Quiet)

    def observe(event: Event) -> None:
        site = _whose(event)
        if site is not None and not quiet[type(event), site].may_say(object()):
            return
        with path.open("a", encoding="utf-8") as file:
            for line in lines(event, plan.selection.sites, plan.rounds):
                file.write(" ".join(line.split()) + "\n")

    return observe


def _whose(event: Event) -> str | None:
    """Return which site may make this happen over and over; "" is any, None no one."""
    match event:
        case SiteJoined() | SiteLeft():
            return event.site
        case SiteRefused():
            return event.refusal.site
        case RunPaused() | RunResumed():
            return ""
        case _:
            return None


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _with(info: RunInfo, **changes: object) -> RunInfo:
    return msgspec.structs.replace(info, **changes)


def _without(info: RunInfo, site: str) -> RunInfo:
    return _with(info, sites=[one for one in info.sites if one != site])
