import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from flare_core import ConfigurationError
from flare_core.communication import (
    ReceivedFile,
    _files,
    fill_file,
    mapped,
    scratch,
    write_file,
)


@given(st.data(), st.lists(st.lists(st.binary(max_size=9), max_size=4), max_size=8))
@example(None, [[b"x"] * 2000])  # more frames than a system call takes
def test_a_file_may_be_filled_in_any_order(
    data: st.DataObject | None, writes: list[list[bytes]]
) -> None:
    pieces = [b"".join(frames) for frames in writes]
    offsets = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
    each = list(zip(offsets, writes, strict=True))
    order = data.draw(st.permutations(each)) if data else each
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")

        with closing(ReceivedFile(path, sum(map(len, pieces)))) as file:
            for offset, frames in order:
                file.write(offset, [memoryview(frame) for frame in frames])

        assert path.read_bytes() == b"".join(pieces)
        assert bytes(mapped(path)) == b"".join(pieces)


@pytest.mark.parametrize("before", [None, b"", b"less", b"as it is", b"what is more"])
def test_a_file_has_its_size_before_the_first_byte(
    before: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    with closing(ReceivedFile(path, 8)) as file:
        assert path.stat().st_size == 8
        file.write(4, [b"done"])
        file.write(0, [b"well"])

    assert path.read_bytes() == b"welldone"


def test_a_frame_longer_than_a_chunk_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "CHUNK_BYTES", 8)
    frames = [bytes(range(20)), b"", bytes(range(3)), bytes(range(16))]

    digest = fill_file(tmp_path / "file", 39, frames)

    assert (tmp_path / "file").read_bytes() == b"".join(frames)
    assert digest == xxhash.xxh3_128(b"".join(frames)).digest()


def test_who_writes_to_a_private_view_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"as it is")
    view = mapped(path, private=True)

    ctypes.memset(np.frombuffer(view, np.uint8).ctypes.data, 0, 4)

    assert bytes(view) == b"\0\0\0\0t is"
    assert path.read_bytes() == b"as it is"


def test_who_looks_at_a_file_of_another_size_still_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before" * 10_000)
    before = mapped(path)

    fill_file(path, 5, [b"af", b"ter"])

    assert path.read_bytes() == b"after"
    assert before == b"before" * 10_000


def test_a_file_that_is_kept_under_another_name_stays_as_it_is(tmp_path: Path) -> None:
    path, kept = tmp_path / "file", tmp_path / "kept"
    path.write_bytes(b"before")
    kept.hardlink_to(path)

    fill_file(path, 6, [b"after!"])

    assert path.read_bytes() == b"after!"
    assert kept.read_bytes() == b"before"


def test_a_new_file_is_nobody_else_s(tmp_path: Path) -> None:
    path = tmp_path / "file"

    with closing(ReceivedFile(path, 8)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_mapped_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    view = mapped(path)
    path.unlink()

    assert bytes(view) == b"content"
    assert view.readonly


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    seen: list[bytes] = []

    def frames() -> Iterator[bytes]:
        for frame in (b"af", b"ter"):
            seen.append(path.read_bytes())
            yield frame

    digest = write_file(path, 5, frames())

    assert seen == [b"before"] * 2
    assert path.read_bytes() == b"after"
    assert digest == xxhash.xxh3_128_digest(b"after")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_could_not_be_finished_leaves_the_one_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    with pytest.raises(ZeroDivisionError):
        write_file(path, 5, (bytes(1 // n) for n in (1, 0)))

    assert path.read_bytes() == b"before"


def test_files_of_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"

    with closing(ReceivedFile(path, 0)) as file:
        file.write(0, [])
    digest = write_file(tmp_path / "other", 0, [])

    assert len(mapped(path)) == len(mapped(tmp_path / "other")) == 0
    assert digest == xxhash.xxh3_128_digest(b"")
    assert len(scratch(tmp_path, 0)) == 0


def test_scratch_is_zeros_to_write_to_that_nobody_sees(tmp_path: Path) -> None:
    memory = scratch(tmp_path, 1 << 20)

    array = np.frombuffer(memory, np.float64)
    assert not array.any()
    array += 1
    assert bytes(memory[:8]) == np.float64(1).tobytes()
    assert not list(tmp_path.iterdir())


_FULL = """
import resource, sys
from pathlib import Path
from flare_core import ConfigurationError
from flare_core.communication import ReceivedFile, scratch, write_file

folder = Path(sys.argv[1])
small = ReceivedFile(folder / "small", 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

def said(act):
    try:
        act()
    except ConfigurationError as exc:
        print(exc)

said(lambda: ReceivedFile(folder / "large", 10_000))
said(lambda: small.write(500, [bytes(400), bytes(400)]))
said(lambda: small.write(2_000, [bytes(1)]))
said(lambda: scratch(folder, 20_000))
said(lambda: write_file(folder / "whole", 30_000, [bytes(30_000)]))
said(lambda: write_file(folder / "whole", 0, [bytes(3_000)]))
"""
_NOT_ALLOWED = """
import os, sys
from pathlib import Path
from flare_core import ConfigurationError
from flare_core.communication import ReceivedFile, scratch

folder = Path(sys.argv[1])
if os.geteuid() == 0:  # who may write anywhere
    os.setuid(65534)
for act in (lambda: ReceivedFile(folder / "a" / "b", 1), lambda: scratch(folder, 2)):
    try:
        act()
    except ConfigurationError as exc:
        print(exc)
"""


def _lines_of(program: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_is_said_with_the_path_and_the_size(tmp_path: Path) -> None:
    said = _lines_of(_FULL, tmp_path)

    beginnings = [
        f"cannot write 10,000 bytes to {tmp_path}/large: File too large",
        f"cannot write 800 bytes to {tmp_path}/small: File too large",
        f"cannot write 1 bytes to {tmp_path}/small: File too large",
        f"cannot write 20,000 bytes to {tmp_path}: File too large",
        f"cannot write 30,000 bytes to {tmp_path}/whole.unfinished: File too large",
        f"cannot write 3,000 bytes to {tmp_path}/whole.unfinished: File too large",
    ]
    assert [line.partition(";")[0] for line in said] == beginnings
    assert all("give the run a folder with room" in line for line in said)
    assert not (tmp_path / "whole").exists()


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o500)

    said = _lines_of(_NOT_ALLOWED, folder)

    assert [line.partition(";")[0] for line in said] == [
        f"cannot write 1 bytes to {folder}/a/b: Permission denied",
        f"cannot write 2 bytes to {folder}: Permission denied",
    ]


def test_a_file_where_a_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "occupied").touch()

    with pytest.raises(ConfigurationError, match=r"cannot write 1 bytes to .*/file: "):
        ReceivedFile(tmp_path / "occupied" / "file", 1)
