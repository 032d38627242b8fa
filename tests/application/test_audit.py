import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen

import msgspec
import pytest

from flare_core import ConfigurationError
from flare_core.application import AuditLog, audit_lines, verify_audit
from inspection import run_fresh

WRITES_FOR_EVER = """
import sys
from pathlib import Path
from flare_core.application import AuditLog
log, number = AuditLog(Path(sys.argv[1])), 0
while True:
    log.note("update", round=number, words="x" * 5000)
    number += 1
    print(number, flush=True)
"""
WRITES_TEN = """
from pathlib import Path
from flare_core.application import AuditLog
log = AuditLog(Path({folder!r}))
for number in range(10):
    log.note("update", round=number, words="x" * number * 1000)
log.sign()
"""
WRITES_TO_A_FULL_DISK = """
import resource
from pathlib import Path
from flare_core import ConfigurationError
from flare_core.application import AuditLog
folder = Path({folder!r})
size = (folder / "audit.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
try:
    AuditLog(folder).note("update", words="x" * 1000)
except ConfigurationError as exc:
    print(exc)
"""


def _entries(folder: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(raw) for raw in audit_lines(folder)]


def test_a_line_says_what_happened_and_is_chained_to_the_one_before(
    tmp_path: Path,
) -> None:
    log = AuditLog(tmp_path / "new")

    log.note("joined", run="r", site="a", plan="abc")
    log.note("round", run="r", number=3, sites=["a", "b"], loss=0.5, late=None)

    first, second = _entries(tmp_path / "new")
    assert list(first) == [
        "seq",
        "time",
        "event",
        "run",
        "site",
        "plan",
        "prev",
        "hash",
    ]
    assert (first["seq"], first["event"], first["site"]) == (1, "joined", "a")
    assert str(first["time"]).endswith("+00:00")
    assert first["prev"] == "0" * 64
    assert (second["seq"], second["prev"]) == (2, first["hash"])
    assert (second["number"], second["sites"]) == (3, ["a", "b"])
    assert (second["loss"], second["late"]) == (0.5, None)


def test_a_log_that_is_as_it_was_written_has_no_problem(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for number in range(3):
        log.note("round", number=number)
        log.sign()
    log.note("ended")

    verdict = verify_audit(tmp_path)

    assert not verdict.problems
    assert not verdict.remarks
    assert (verdict.lines, verdict.signatures, verdict.unsigned) == (7, 3, 1)
    assert verdict.key == _entries(tmp_path)[1]["key"]


def test_only_its_owner_reads_the_secret_key(tmp_path: Path) -> None:
    AuditLog(tmp_path).sign()

    assert stat.S_IMODE((tmp_path / "audit.key").stat().st_mode) == 0o600


def test_the_key_is_made_once(tmp_path: Path) -> None:
    AuditLog(tmp_path).sign()
    before = (tmp_path / "audit.key").read_bytes()

    AuditLog(tmp_path).sign()

    assert (tmp_path / "audit.key").read_bytes() == before
    assert verify_audit(tmp_path).signatures == 2


def test_several_processes_write_one_chain(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    code = WRITES_TEN.format(folder=str(tmp_path))

    list(pool.map(run_fresh, [code] * 4))

    verdict = verify_audit(tmp_path)
    assert not verdict.problems
    assert (verdict.lines, verdict.signatures) == (44, 4)


def test_several_threads_write_one_chain(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    log = AuditLog(tmp_path)

    list(pool.map(lambda n: log.note("update", round=n), range(100)))

    assert verify_audit(tmp_path).lines == 100
    assert {entry["round"] for entry in _entries(tmp_path)} == set(range(100))


def test_a_log_whose_writer_is_killed_goes_on(tmp_path: Path) -> None:
    for _ in range(8):
        command = [sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path)]
        with Popen(command, stdout=PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(3):
                assert writer.stdout.readline()
            writer.kill()

        AuditLog(tmp_path).note("restarted")

        assert not verify_audit(tmp_path).problems
    assert verify_audit(tmp_path).lines >= 8 * 4


def test_a_torn_line_is_a_problem_until_it_is_moved_aside_and_noted(
    tmp_path: Path,
) -> None:
    log = AuditLog(tmp_path)
    log.note("first")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"seq":2,"ti')

    torn = verify_audit(tmp_path)
    log.note("second")
    mended = verify_audit(tmp_path)

    assert [problem.line for problem in torn.problems] == [2]
    assert "is torn" in torn.problems[0].words
    assert not mended.problems
    assert [remark.line for remark in mended.remarks] == [2]
    assert "moved to audit.torn" in mended.remarks[0].words
    events = [entry["event"] for entry in _entries(tmp_path)]
    assert events == ["first", "torn", "second"]
    assert (tmp_path / "audit.torn").read_bytes() == b'{"seq":2,"ti\n'


def test_a_line_that_was_whole_and_is_torn_is_never_forgotten(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.note("first")
    log.note("second")
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-1])

    log.note("third")

    problems = verify_audit(tmp_path).problems
    assert ["were gone before it" in problem.words for problem in problems] == [True]
    events = [entry["event"] for entry in _entries(tmp_path)]
    assert events == ["first", "torn", "lost", "third"]


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_lines_cut_off_the_end_are_never_forgotten(keep: int, tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for number in range(3):
        log.note("round", number=number)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:keep]))

    cut = verify_audit(tmp_path)
    log.note("later")
    later = verify_audit(tmp_path)

    assert [problem.line for problem in cut.problems] == [keep + 1]
    assert "audit.head knows 3" in cut.problems[0].words
    assert [problem.line for problem in later.problems] == [keep + 1]


def test_a_log_without_its_head_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.note("first")
    (tmp_path / "audit.head").unlink()

    gone = verify_audit(tmp_path)
    log.note("second")

    assert "audit.head is gone" in gone.problems[0].words
    assert "were gone before it" in verify_audit(tmp_path).problems[0].words


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    AuditLog(tmp_path).note("first")

    said = run_fresh(WRITES_TO_A_FULL_DISK.format(folder=str(tmp_path)))

    assert "audit.jsonl: File too large; what cannot be audited is not done" in said
    verdict = verify_audit(tmp_path)
    assert (verdict.problems, verdict.lines) == ((), 1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")

    with pytest.raises(ConfigurationError, match=r"cannot write .*occupied.*not done"):
        AuditLog(tmp_path / "occupied").note("first")


def test_nothing_is_chained_to_a_line_that_was_changed(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.note("first", words="yes")
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"yes", b"not"))

    with pytest.raises(ConfigurationError, match=r"audit\.jsonl was changed after"):
        log.note("second")


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("signed", {}),
        ("torn", {}),
        ("lost", {}),
        ("x", {"hash": "1"}),
        ("x", {"seq": 3}),
        ("x", {"signature": "1"}),
    ],
)
def test_what_the_log_says_itself_nobody_else_can_say(
    event: str, facts: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="are the log's own"):
        AuditLog(tmp_path).note(event, **facts)

    assert not (tmp_path / "audit.jsonl").exists()


def test_a_secret_key_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.sign()
    (tmp_path / "audit.key").unlink()

    with pytest.raises(ConfigurationError, match=r"audit\.key is gone.* put it back"):
        log.sign()

    assert not verify_audit(tmp_path).problems


@pytest.mark.parametrize("name", ["audit.key", "audit.pub"])
def test_a_file_that_is_no_key_is_named(name: str, tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.sign()
    (tmp_path / name).write_text("nonsense")

    with pytest.raises(ConfigurationError, match=f"{name} is no Ed25519 key"):
        log.sign()


def test_there_must_be_a_log_to_verify(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"audit\.jsonl: No such file"):
        verify_audit(tmp_path)


@pytest.mark.parametrize("num_lines", [0, 1])
def test_a_log_whose_head_could_not_be_written_goes_on(
    num_lines: int, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    for _ in range(num_lines):
        log.note("before")
    in_the_way = tmp_path / "audit.head.unfinished"
    in_the_way.mkdir()
    with pytest.raises(ConfigurationError, match=r"audit\.head\.unfinished: Is a dir"):
        log.note("meanwhile")
    in_the_way.rmdir()

    log.note("after")

    assert not verify_audit(tmp_path).problems


def test_a_log_that_is_written_to_can_be_verified(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path)]
    with Popen(command, stdout=PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()

        verdicts = [verify_audit(tmp_path)]
        while verdicts[-1].lines < verdicts[0].lines + 50:  # a new one now and then
            verdicts.append(verify_audit(tmp_path))
        writer.kill()

    assert not [problem for verdict in verdicts for problem in verdict.problems]
