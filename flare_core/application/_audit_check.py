"""Whether an audit log is as it was written."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flare_core._errors import ConfigurationError
from flare_core.application._audit_head import AuditHead, missing
from flare_core.application._audit_keys import AuditKeys, fingerprint
from flare_core.application._audit_line import (
    LOST,
    SIGNED,
    TORN,
    Line,
    Place,
    holds,
    read_line,
)


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Something to say about a line of an audit log.

    Attributes:
        line: Its number, counted from 1; the one after the last, if lines are gone.
        words: What there is to say.
    """

    line: int
    words: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.words}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What there is to say about an audit log.

    Attributes:
        problems: What is wrong; it is as it was written if there is nothing.
        remarks: What is worth knowing, and not wrong.
        lines: How many lines hold.
        signatures: How many signatures hold.
        unsigned: How many lines follow the last signature that holds.
        key: Fingerprint of ``audit.pub``; empty if there is none.
    """

    problems: tuple[Finding, ...]
    remarks: tuple[Finding, ...]
    lines: int
    signatures: int
    unsigned: int
    key: str


def verify_audit(folder: Path) -> Verdict:
    """Compare every line of an audit log with its hash and with the line before.

    A changed byte, a line taken out and two lines exchanged are found anywhere in the
    log, and lines cut off its end by ``audit.head``.

    What it proves: nothing before the last signature was changed, taken out or put in
    by anybody who has not got ``audit.key``.  What it does not: who can write to the
    folder, but has no key, can write the lines after the last signature anew, and cut
    the log off behind an earlier signature, if ``audit.head`` is made to fit; who has
    the key can write all of it anew.  So keep ``audit.pub``, or its fingerprint, and
    now and then ``audit.head``, where such people cannot reach it.

    Args:
        folder: Of the log; it is only read, and may be written to meanwhile.

    Raises:
        ConfigurationError: If there is no log, or it cannot be read.
    """
    try:
        check = _Check(AuditKeys(folder).public())
        known, num_bytes = _snapshot(folder)
        for raw in _first(num_bytes, audit_lines(folder)):
            check.take(raw)
    except OSError as exc:
        raise _unreadable(folder, exc) from exc
    return check.verdict(known)


def signing_fault(folder: Path) -> str:
    """Return why the next line of an audit log could not be signed; empty if it could.

    Args:
        folder: Of the log; it is only read.
    """
    keys = AuditKeys(folder)
    try:
        if keys.public() is not None:  # else both are made when they are needed
            keys.secret()
    except (ConfigurationError, OSError) as exc:
        return str(exc)
    return ""


def audit_lines(folder: Path) -> Iterator[bytes]:
    """Yield the lines of an audit log as they are, with their newlines.

    Raises:
        ConfigurationError: If there is no log, or it cannot be read.
    """
    try:
        with (folder / "audit.jsonl").open("rb") as file:
            yield from file
    except OSError as exc:
        raise _unreadable(folder, exc) from exc


@final
class _Check:
    """What is known of a log, line by line."""

    def __init__(self, public: Ed25519PublicKey | None) -> None:
        self._public = public
        self._key = fingerprint(public) if public else ""
        self._end: Place | None = Place()
        self._count = self._lines = self._signatures = self._unsigned = 0
        self._problems: list[Finding] = []
        self._remarks: list[Finding] = []

    def take(self, raw: bytes) -> None:
        """Look at the next line."""
        self._count += 1
        before, self._end = self._end, None
        try:
            line = read_line(_whole(raw))
        except ValueError as exc:
            self._problem(str(exc))
            return
        self._end = line.place
        if before and (line.seq, line.prev) != (before.seq + 1, before.hash):
            self._problem(
                f"has the number {line.seq} and does not follow the line before it: "
                "a line was taken out, put in or moved"
            )
        elif self._sound(line, raw.removesuffix(b"\n")):
            self._lines += 1

    def verdict(self, known: Place | None) -> Verdict:
        """Return what came out.

        Args:
            known: What ``audit.head`` says.
        """
        lost = missing(known, self._end) if self._end else ""
        self._count += 1
        if lost:
            self._problem(lost)
        return Verdict(
            problems=tuple(self._problems),
            remarks=tuple(self._remarks),
            lines=self._lines,
            signatures=self._signatures,
            unsigned=self._unsigned,
            key=self._key,
        )

    def _sound(self, line: Line, raw: bytes) -> bool:
        """Return whether a line that is in its place has nothing wrong."""
        self._unsigned += 1
        if line.event == TORN:
            self._remark("a torn line was found before it, and moved to audit.torn")
        if line.event == LOST:
            self._problem("lines were gone before it, by a power loss or by somebody")
            return False
        if line.event != SIGNED:
            return True
        wrong = self._wrong_signature(line, raw)
        if wrong:
            self._problem(wrong)
            return False
        self._signatures += 1
        self._unsigned = 0
        return True

    def _wrong_signature(self, line: Line, raw: bytes) -> str:
        if self._public is None:
            return "is signed, and there is no audit.pub to verify it with"
        if line.key != self._key:
            return f"is signed by the key {line.key}, and audit.pub is {self._key}"
        return "" if holds(raw, self._public) else "has a wrong signature, or none"

    def _problem(self, words: str) -> None:
        self._problems.append(Finding(self._count, words))

    def _remark(self, words: str) -> None:
        self._remarks.append(Finding(self._count, words))


def _snapshot(folder: Path) -> tuple[Place | None, int]:
    """Return what ``audit.head`` says and how long the log is, at one moment."""
    with (folder / "audit.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return AuditHead(folder).read(), os.fstat(file.fileno()).st_size


def _first(num_bytes: int, raws: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines that were there; others may be appended meanwhile."""
    for raw in raws:
        if num_bytes <= 0:
            return
        num_bytes -= len(raw)
        yield raw


def _whole(raw: bytes) -> bytes:
    """Return a line without its newline."""
    if not raw.endswith(b"\n"):
        msg = (
            "is torn, by a crash or by somebody; whoever writes the next line moves it "
            "to audit.torn and says so"
        )
        raise ValueError(msg)
    return raw[:-1]


def _unreadable(folder: Path, error: OSError) -> ConfigurationError:
    name = error.filename or folder / "audit.jsonl"
    msg = (
        f"cannot read {name}: {error.strerror}; is {folder} the folder of an audit log?"
    )
    return ConfigurationError(msg)
