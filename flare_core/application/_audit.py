"""The audit log: what happened, in an order that cannot be changed unseen."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flare_core._errors import ConfigurationError
from flare_core.application._audit_head import AuditHead, missing
from flare_core.application._audit_keys import AuditKeys, fingerprint
from flare_core.application._audit_line import (
    LOST,
    SIGNED,
    TORN,
    Fact,
    Place,
    read_line,
    write_line,
)
from flare_core.application._lines import Lines, appending

_OURS = {LOST, SIGNED, TORN}
_RESERVED = {"event", "hash", "prev", "seq", "signature", "time"}


@final
class AuditLog:
    """An append-only log: JSON lines, each chained to the one before, signed.

    Any number of processes and threads may write to one at the same time.

    What a crash leaves of a line is moved aside, to ``audit.torn``; the next line
    then says so (event ``torn``).  Where lines are gone that ``audit.head`` knows, the
    next line says that (event ``lost``), and `verify_audit` never forgets it.

    Args:
        folder: Of ``audit.jsonl``, ``audit.head``, ``audit.key`` (the secret key) and
            ``audit.pub``; made with the first line.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "audit.jsonl"
        self._torn_path = folder / "audit.torn"
        self._head = AuditHead(folder)
        self._keys = AuditKeys(folder)

    def note(
        self, event: str, /, *, run: str = "", site: str = "", **facts: Fact
    ) -> None:
        """Append a line.  What is noted before it is done is done only if it returns.

        Args:
            event: What happens; ``lost``, ``signed`` and ``torn`` are the log's own.
            run: In which run, if in one.
            site: At which site, if at one.
            facts: What else there is to say.

        Raises:
            ConfigurationError: If it cannot be written, or the log's last line is
                damaged; then what it is about must not go on.
            ValueError: If the event or a fact has a name that is the log's own.
        """
        if event in _OURS or not _RESERVED.isdisjoint(facts):
            taken = ", ".join(sorted(_OURS | _RESERVED))
            msg = f"event {event!r} with {', '.join(facts)}: {taken} are the log's own"
            raise ValueError(msg)
        line = {"event": event, "run": run, "site": site, **facts}
        with self._mended() as (lines, place):
            self._append(lines, place, line)

    def sign(self) -> None:
        """Append a signature over all lines so far, and have all survive a power loss.

        Raises:
            ConfigurationError: If it cannot be written, or a key file is wrong.
        """
        with self._mended() as (lines, place):
            secret = self._keys.secret()
            line = _of_ours(SIGNED, key=fingerprint(secret.public_key()))
            self._append(lines, place, line, secret)

    @contextmanager
    def _mended(self) -> Generator[tuple[Lines, Place]]:
        """Yield the log, whole and locked, and where it ends."""
        try:
            with appending(self._path, mode=0o600) as lines:
                yield lines, self._mend(lines)
        except OSError as exc:
            msg = (
                f"cannot write {exc.filename or self._path}: {exc.strerror}; what "
                "cannot be audited is not done: make room, or set its owner and mode"
            )
            raise ConfigurationError(msg) from exc

    def _mend(self, lines: Lines) -> Place:
        """Note what a crash, or somebody, has done to the log; return where it ends."""
        torn = lines.torn()
        if torn:
            with appending(self._torn_path, mode=0o600) as aside:
                aside.append(torn + b"\n")
                aside.sync()
            lines.cut()
        place = self._place(lines)
        lost = missing(self._head.read(), place)
        if not place.seq and not lost:
            self._head.write(place)  # so that a log without it is never a new one
        if torn:
            digest = blake3(torn).hexdigest()
            line = _of_ours(TORN, bytes=len(torn), blake3=digest)
            place = self._append(lines, place, line)
        if lost:
            place = self._append(lines, place, _of_ours(LOST, words=lost))
        return place

    def _place(self, lines: Lines) -> Place:
        last = lines.last()
        if not last:
            return Place()
        try:
            return read_line(last).place
        except ValueError as exc:
            msg = (
                f"the last line of {self._path} {exc}; nothing more is written to it: "
                "see `flare audit verify`, keep it, and begin one in another folder"
            )
            raise ConfigurationError(msg) from exc

    def _append(
        self,
        lines: Lines,
        place: Place,
        facts: dict[str, Fact],
        secret: Ed25519PrivateKey | None = None,
    ) -> Place:
        raw, after = write_line(facts, place, secret)
        lines.append(raw)
        if secret is not None:
            lines.sync()
        self._head.write(after, sync=secret is not None)
        return after


def _of_ours(event: str, **facts: Fact) -> dict[str, Fact]:
    return {"event": event, "run": "", "site": "", **facts}
