"""Whatever somebody does to an audit log is found."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from flare_core.application import AuditLog, Finding, verify_audit

_Acts: TypeAlias = list[str | int | bool | list[int] | None]
"""What to note; None is a signature."""

_FACTS = (
    st.text(max_size=8)
    | st.integers(-(2**60), 2**60)
    | st.booleans()
    | st.lists(st.integers(0, 9), max_size=3)
)
_LOGS: st.SearchStrategy[_Acts] = st.lists(st.none() | _FACTS, min_size=2, max_size=6)


@contextmanager
def _log(acts: _Acts) -> Iterator[Path]:
    """Yield the file of a log in which this was done, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder))
        for fact in acts:
            if fact is None:
                log.sign()
            else:
                log.note("update", words=fact, key=fact)
        assert not verify_audit(Path(folder)).problems
        yield Path(folder, "audit.jsonl")


def _problems(path: Path) -> tuple[Finding, ...]:
    return verify_audit(path.parent).problems


@given(_LOGS, st.data())
def test_a_flipped_bit_is_found(acts: _Acts, data: st.DataObject) -> None:
    with _log(acts) as path:
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, 8 * len(content) - 1))
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)

        assert _problems(path)


@given(_LOGS, st.data())
def test_a_deleted_line_is_found(acts: _Acts, data: st.DataObject) -> None:
    with _log(acts) as path:
        lines = path.read_bytes().splitlines(keepends=True)
        at = data.draw(st.integers(0, len(lines) - 1))
        path.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))

        assert [problem.line for problem in _problems(path)] == [at + 1]


@given(_LOGS, st.data())
def test_two_lines_exchanged_are_found(acts: _Acts, data: st.DataObject) -> None:
    with _log(acts) as path:
        lines = path.read_bytes().splitlines(keepends=True)
        places = st.integers(0, len(lines) - 1)
        first, second = data.draw(st.lists(places, min_size=2, max_size=2, unique=True))
        lines[first], lines[second] = lines[second], lines[first]
        path.write_bytes(b"".join(lines))

        assert min(first, second) + 1 == _problems(path)[0].line


@given(_LOGS, st.data())
def test_a_line_put_in_twice_is_found(acts: _Acts, data: st.DataObject) -> None:
    with _log(acts) as path:
        lines = path.read_bytes().splitlines(keepends=True)
        again = data.draw(st.sampled_from(lines))
        at = data.draw(st.integers(0, len(lines)))
        path.write_bytes(b"".join([*lines[:at], again, *lines[at:]]))

        assert _problems(path)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A log of two lines, a signature, and a line that is not signed."""
    log = AuditLog(tmp_path)
    log.note("first", words="yes")
    log.note("second")
    log.sign()
    log.note("third", words="yes")
    return tmp_path / "audit.jsonl"


def _forge(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change a log and chain it anew, as somebody without the key can."""
    before, chained = b"0" * 64, []
    for line in change(path.read_bytes().splitlines()):
        body, _, _ = line.rpartition(b',"hash":"')
        head, _, tail = body.rpartition(b'"prev":"')
        body = head + b'"prev":"' + before + tail[64:]
        before = blake3(body + b"}").hexdigest().encode()
        chained.append(body + b',"hash":"' + before + b'"}\n')
    path.write_bytes(b"".join(chained))
    head_file = path.with_name("audit.head")
    head_file.write_bytes(b'{"seq":%d,"hash":"%s"}' % (len(chained), before))


def test_a_log_that_is_chained_anew_as_it_was_has_no_problem(signed: Path) -> None:
    before = signed.read_bytes()

    _forge(signed, lambda lines: lines)

    assert signed.read_bytes() == before
    assert not _problems(signed)


def test_a_signature_finds_what_was_changed_before_it_and_chained_anew(
    signed: Path,
) -> None:
    _forge(signed, lambda ls: [ls[0].replace(b"yes", b"not"), *ls[1:]])

    assert [str(problem) for problem in _problems(signed)] == [
        "line 3: has a wrong signature, or none"
    ]


def test_the_time_and_the_place_of_a_signature_are_signed_too(signed: Path) -> None:
    _forge(
        signed, lambda ls: [*ls[:2], ls[2].replace(b'"time":"2', b'"time":"3'), ls[3]]
    )

    assert [problem.line for problem in _problems(signed)] == [3]


def test_a_signature_that_was_taken_out_of_its_line_is_found(signed: Path) -> None:
    def without(lines: list[bytes]) -> list[bytes]:
        head, _, tail = lines[2].rpartition(b',"signature":"')
        return [*lines[:2], head + tail[129:], lines[3]]

    _forge(signed, without)

    assert "has a wrong signature, or none" in _problems(signed)[0].words


def test_a_public_key_that_was_exchanged_is_found(signed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    AuditLog(other).sign()
    shutil.copy(other / "audit.pub", signed.parent)

    problems = _problems(signed)

    assert [problem.line for problem in problems] == [3]
    assert "is signed by the key" in problems[0].words


def test_a_public_key_that_is_gone_is_found(signed: Path) -> None:
    signed.with_name("audit.pub").unlink()

    assert "there is no audit.pub" in _problems(signed)[0].words


def test_a_last_line_that_was_written_anew_is_found(signed: Path) -> None:
    head = signed.with_name("audit.head").read_bytes()

    _forge(signed, lambda ls: [*ls[:3], ls[3].replace(b"yes", b"not")])
    signed.with_name("audit.head").write_bytes(head)

    assert "another than the one that audit.head knows" in _problems(signed)[0].words
