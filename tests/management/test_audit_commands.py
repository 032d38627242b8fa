from pathlib import Path

import pytest

from flare_core.application import AuditLog
from flare_core.application._audit_keys import AuditKeys, fingerprint
from simulated import Flare


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An audit log of two runs in the folder of the test; its file."""
    log = AuditLog(tmp_path)
    log.note("joined", run="lung", site="a", plan="abc")
    log.note("update", run="lung", site="a", round=1, sizes=[1, 2])
    log.sign()
    log.note("joined", run="tumour", site="a", words="[red]\x1b[2J\u009b2J")
    return tmp_path / "audit.jsonl"


@pytest.mark.parametrize("folder", [(), (".",)])
def test_a_good_log_is_verified(
    flare: Flare, log: Path, folder: tuple[str, ...]
) -> None:
    done = flare("audit", "verify", *folder)

    assert done.returncode == 0, done.stderr
    public = AuditKeys(log.parent).public()
    assert public is not None
    assert f"4 lines and 1 signature hold; key {fingerprint(public)}\n" in done.stdout
    assert "not signed yet: the last 1 line\n" in done.stdout


def test_each_problem_is_printed_with_its_line(flare: Flare, log: Path) -> None:
    changed = log.read_bytes().replace(b'"plan":"abc"', b'"plan":"abd"')
    log.write_bytes(b"".join(changed.splitlines(keepends=True)[:-1]))

    done = flare("audit", "verify", log.parent)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "line 1: was changed after it was written",
        "line 4: lines are gone: audit.head knows 4 of them",
    ]
    assert "2 lines and 1 signature hold" in done.stdout


def test_a_line_that_was_moved_aside_is_told(flare: Flare, log: Path) -> None:
    with log.open("ab") as file:
        file.write(b"torn")
    AuditLog(log.parent).note("later")

    done = flare("audit", "verify")

    assert done.returncode == 0
    assert "line 5: a torn line was found before it, and moved to audit.tor" in (
        done.stdout
    )


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_folder_without_a_log_is_named(flare: Flare, command: str) -> None:
    done = flare("audit", command, "nowhere")

    assert done.returncode == 1
    assert "cannot read nowhere/audit.jsonl: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_shows_a_line_for_a_line(flare: Flare, log: Path) -> None:
    done = flare("audit", "show", log.parent)

    shown = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(shown) == 4
    assert shown[1].startswith("    2  20")
    assert shown[1].endswith("  update  run lung  site a  round=1  sizes=[1,2]")


def test_shows_one_run_only(flare: Flare, log: Path) -> None:
    done = flare("audit", "show", log.parent, "--run", "lung")

    assert [line.split()[2] for line in done.stdout.splitlines()] == [
        "joined",
        "update",
    ]


def test_shows_one_kind_of_event_only(flare: Flare, log: Path) -> None:
    done = flare("audit", "show", log.parent, "--event", "joined", "--run", "tumour")

    (line,) = done.stdout.splitlines()
    assert "run tumour" in line


def test_nothing_shown_moves_the_cursor(flare: Flare, log: Path) -> None:
    done = flare("audit", "show", log.parent)

    assert "\x1b" not in done.stdout
    assert "\u009b" not in done.stdout
    assert 'words="[red]\\u001b[2J?2J"' in done.stdout


def test_a_damaged_line_is_told_and_the_others_are_shown(
    flare: Flare, log: Path
) -> None:
    log.write_bytes(log.read_bytes().replace(b'{"seq":2', b'<"seq":2'))

    done = flare("audit", "show")

    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "line 2 is damaged; see `flare audit verify`\n"
