"""The folder and the settings of a server."""

import stat
from pathlib import Path

import msgspec
import pytest

from flare_core import ConfigurationError
from flare_core.communication import Limits
from flare_core.management._deployment import (
    ServerFolder,
    ServerSettings,
    Service,
    write_secret,
)

_SETTINGS = ServerSettings(listen="tcp://127.0.0.1:0")


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    folder = ServerFolder(tmp_path / "srv")
    folder.make(_SETTINGS)
    return folder


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_enter_it_or_read_its_keys(folder: ServerFolder) -> None:
    assert _mode(folder.path) == 0o700
    assert _mode(folder.path / "server.key") == 0o600
    assert _mode(folder.path / "admin.key") == 0o600


def test_what_a_server_adds_nobody_else_may_read(folder: ServerFolder) -> None:
    service = Service(folder)
    service.stop("at once")
    service.run()

    secret = {"store.sqlite", "audit.jsonl", "audit.key", "server.key", "admin.key"}
    assert secret <= {path.name for path in folder.path.iterdir()}
    assert {_mode(folder.path / name) for name in secret} == {0o600}


def test_a_folder_that_others_could_enter_is_closed_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    ServerFolder(tmp_path).make(_SETTINGS)

    assert _mode(tmp_path) == 0o700


def test_a_server_is_not_made_over_another_one(folder: ServerFolder) -> None:
    before = folder.keys("server")

    with pytest.raises(ConfigurationError, match="there is a server already"):
        folder.make(_SETTINGS)

    assert folder.keys("server") == before


def test_a_key_is_not_overwritten(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"1")

    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", b"2")

    assert (tmp_path / "key").read_bytes() == b"1\n"


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    path = tmp_path / ("long" * 30)

    with pytest.raises(ConfigurationError, match="at most 100 bytes for its socket"):
        ServerFolder(path).make(_SETTINGS)

    assert not path.exists()


def test_the_settings_are_read_back(folder: ServerFolder) -> None:
    assert folder.settings() == _SETTINGS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('lisen = "tcp://127.0.0.1:0"', "unknown field `lisen`"),
        ("[limits]\nmesage_bytes = 5000000", "unknown field `mesage_bytes`"),
        ("patience_s = 0", "> 0"),
        ("num_threads = -1", ">= 0"),
        ("[limits]\nstrangers = 0", ">= 1"),
        ("[limits]\nmessage_bytes = 1000", ">="),
        ("listen = 5", "Expected `str`"),
        ('listen = "127.0.0.1:8470"', "listen: expected tcp://HOST:PORT, got '127"),
        ('listen = "tcp://127.0.0.1:84700"', "listen: expected tcp://HOST:PORT"),
        ('listen = "tcp://*:8470"', "every address of this machine"),
        ('listen = "tcp://[::]:8470"', "every address of this machine"),
        ('address = "flare.example.org"', "address: expected tcp://HOST:PORT"),
        ("listen = ", "Invalid value"),
    ],
)
def test_a_setting_nobody_knows_or_that_does_not_fit_is_refused_and_the_keys_named(
    text: str, complaint: str, folder: ServerFolder
) -> None:
    listen = "" if "listen" in text else 'listen = "tcp://127.0.0.1:0"\n'
    folder.settings_file.write_text(f"{listen}{text}")

    with pytest.raises(ConfigurationError) as refused:
        folder.settings()

    said = str(refused.value)
    assert complaint in said
    for key in ServerSettings.__struct_fields__:
        assert key in said
    for key in msgspec.structs.asdict(Limits()):
        assert f"limits.{key}" in said


def test_a_folder_without_a_server_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="flare server init"):
        ServerFolder(tmp_path).settings()
