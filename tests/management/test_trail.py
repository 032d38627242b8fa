"""What a server writes down of what it refused."""

from pathlib import Path

import msgspec

from flare_core.application import AuditLog, audit_lines
from flare_core.management._deployment._trail import Trail

_MOST = 10


def told(folder: Path, event: str) -> list[dict[str, object]]:
    lines = [msgspec.json.decode(line, type=dict) for line in audit_lines(folder)]
    return [line for line in lines if line["event"] == event]


def refused(folder: Path) -> list[dict[str, object]]:
    return told(folder, "refused")


def test_a_refusal_that_repeats_is_one_line(tmp_path: Path) -> None:
    trail = Trail(AuditLog(tmp_path))

    for _ in range(10):
        trail.refused("unknown key", address="10.0.0.9", key="k")

    assert len(refused(tmp_path)) == 1


def test_refusals_that_differ_are_told_apart(tmp_path: Path) -> None:
    trail = Trail(AuditLog(tmp_path))

    for number in range(10):
        trail.refused("unknown key", address="10.0.0.9", key=f"k{number}")

    assert {line["key"] for line in refused(tmp_path)} == {f"k{n}" for n in range(10)}


def test_a_stranger_with_a_new_key_each_time_cannot_fill_the_disk(
    tmp_path: Path,
) -> None:
    trail = Trail(AuditLog(tmp_path))

    for number in range(1000):
        trail.refused("unknown key", address="10.0.0.9", key=f"k{number}")
    trail.refused("may not invite", user="rita")
    trail.sign()

    lines = refused(tmp_path)
    assert len(lines) == _MOST + 1
    assert lines[-1]["what"] == "may not invite"
    (repeated,) = told(tmp_path, "repeated")
    assert repeated["times"] == 1000 - _MOST
