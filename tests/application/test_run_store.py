"""The database of a run, by itself."""

from contextlib import closing
from pathlib import Path

import pytest

from flare_core import ConfigurationError
from flare_core.application._run_store import NAME, RunStore


def _open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    return [str(one.readlink()) for one in folder.iterdir() if one.is_symlink()]


def test_a_store_that_is_refused_is_closed(tmp_path: Path) -> None:
    with closing(RunStore(tmp_path, run="one", plan="p")):
        assert str(tmp_path / NAME) in _open_files()

    with pytest.raises(ConfigurationError) as refused:  # it holds on to the store
        RunStore(tmp_path, run="another", plan="p")

    assert "another" in str(refused.value)
    assert not [one for one in _open_files() if one.startswith(str(tmp_path))]
