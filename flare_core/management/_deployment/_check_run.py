"""Looks at what is on the disk of one run."""

from collections.abc import Iterator
from pathlib import Path
from typing import final

import msgspec
from blake3 import blake3

from flare_core._errors import ConfigurationError
from flare_core._plan import Plan, plan_from
from flare_core.application import Best, Result, RoundRecord, run_store_faults
from flare_core.communication import RunInfo
from flare_core.management._deployment._checked import Checked, Level
from flare_core.management._deployment._runs import OPEN, SPOOL
from flare_core.management._run_folder import (
    BEST,
    BEST_FACTS,
    GLOBAL,
    PLAN,
    RESULT,
    ROUNDS,
    read_plan,
    read_rounds,
)
from flare_core.management._wording import counted

_RESTORE = "restore it from a backup"


def check_run(folder: Path, info: RunInfo) -> Iterator[Checked]:
    """Look at a run of a server that does not run.

    Args:
        folder: Of its record.
        info: What the server's store says of it.
    """
    look = _Look(folder, f"run {info.name}")
    over = info.state not in OPEN
    plan, records = look.plan(), look.rounds(over=over)
    if plan is not None and plan.fingerprint != info.plan.fingerprint:
        look.found(
            "wrong",
            f"{folder / PLAN} is not the plan that the run was made with, which is "
            f"{info.plan.fingerprint} in the store; {_RESTORE}",
        )
    if over:
        look.end(info, records)
    else:
        for fault in run_store_faults(
            folder / SPOOL, run=info.name, plan=info.plan.fingerprint
        ):
            look.found("wrong", f"{fault}; {_RESTORE}, or stop the run")
    rounds = f"{info.state}, {counted(info.rounds, 'round')} of {info.plan.rounds}"
    yield from look.findings(rounds)


def check_record(folder: Path) -> Iterator[Checked]:
    """Look at the record of a run while the server runs, and has its store."""
    look = _Look(folder, f"run {folder.name}")
    if not (folder / RESULT).exists():
        look.found("note", "is not over: stop the server to check it")
        yield from look.findings("")
        return
    look.plan()
    records = look.rounds(over=True)
    look.result()
    yield from look.findings(f"over, {counted(len(records or ()), 'round')}")


@final
class _Look:
    """Collects what there is to say of a run.

    Args:
        folder: Of its record.
        what: How it is called.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder = folder
        self._what = what
        self._findings: list[Checked] = []

    def found(self, level: Level, words: str) -> None:
        """Note something."""
        self._findings.append(Checked(level, self._what, words))

    def findings(self, good: str) -> list[Checked]:
        """Return what there is to say.

        Args:
            good: That, if nothing else is.
        """
        return self._findings or [Checked("ok", self._what, good)]

    def plan(self) -> Plan | None:
        """Look at the plan."""
        path = self._folder / PLAN
        if not path.exists():
            self.found("wrong", f"{path} is missing; {_RESTORE}")
            return None
        try:
            return plan_from(read_plan(path), source=f"plan {path}")
        except ConfigurationError as exc:
            self.found("wrong", f"{exc}; {_RESTORE}")
            return None

    def rounds(self, *, over: bool) -> list[RoundRecord] | None:
        """Look at the records of the rounds."""
        try:
            return read_rounds(self._folder)
        except ConfigurationError as exc:
            if over:
                self.found("wrong", str(exc))
            else:
                self.found("note", f"{exc}; or start the server, which writes it anew")
            return None

    def result(self) -> Result | None:
        """Look at how it ended."""
        path = self._folder / RESULT
        try:
            return msgspec.json.decode(path.read_bytes(), type=Result)
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            self.found("wrong", f"{path}: {why}; {_RESTORE}")
            return None

    def end(self, info: RunInfo, records: list[RoundRecord] | None) -> None:
        """Look at what is left of a run that is over."""
        if records is not None and len(records) != info.rounds:
            self.found(
                "wrong",
                f"{self._folder / ROUNDS}: expected {counted(info.rounds, 'round')}, "
                f"got {len(records)}; {_RESTORE}",
            )
        elif records and records[-1].blake3 != info.blake3:
            self.found(
                "wrong",
                f"{self._folder / ROUNDS} ends with the model {records[-1].blake3}, "
                f"and the store says {info.blake3}; {_RESTORE}",
            )
        if info.state == "finished":
            result = self.result()
            if result is not None and result.blake3 != info.blake3:
                self.found(
                    "wrong",
                    f"{self._folder / RESULT} is about the model {result.blake3}, and "
                    f"the store says {info.blake3}; {_RESTORE}",
                )
        if info.blake3:
            self._model(GLOBAL, info.blake3)
        self._best()
        if (self._folder / SPOOL).exists():
            path = self._folder / SPOOL
            self.found(
                "note", f"{path} was left by a server that was killed; remove it"
            )

    def _best(self) -> None:
        path = self._folder / BEST_FACTS
        if not path.exists():
            return
        try:
            best = msgspec.json.decode(path.read_bytes(), type=Best)
        except ValueError as exc:
            self.found("wrong", f"{path}: {exc}; {_RESTORE}")
        else:
            self._model(BEST, best.blake3)

    def _model(self, name: str, expected: str) -> None:
        path = self._folder / name
        if not path.exists():
            self.found("wrong", f"{path} is missing; {_RESTORE}")
            return
        digest = blake3().update_mmap(path).hexdigest()
        if digest != expected:
            self.found(
                "wrong",
                f"{path}: expected BLAKE3 {expected}, got {digest}; {_RESTORE}",
            )
