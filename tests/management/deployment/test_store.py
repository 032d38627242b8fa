"""What the server's database keeps."""

import sqlite3
import stat
import time
from pathlib import Path

import pytest

from flare_core import ConfigurationError, Plan
from flare_core.communication import KeyPair, RunInfo
from flare_core.management._deployment._store import Invited, Store


def _key() -> str:
    return KeyPair.new().public.decode()


def _invited(name: str) -> Invited:
    return Invited(key=_key(), name=name, role="site", expires=2e9, used=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def test_keeps_everything_until_the_next_start(path: Path) -> None:
    key, invited = _key(), _invited("b")
    info = RunInfo(
        name="demo", plan=Plan(rounds=3), state="waiting", creator="rita", created=1.5
    )
    store = Store(path)
    store.enrol("a", "observer", key)
    store.invite(invited, creator="admin")
    store.add_run(info)
    store.update_run("demo", "failed", rounds=2, blake3="ab", error="no quorum")
    store.close()

    store = Store(path)

    (member,) = store.members()
    assert (member.name, member.role, member.keys) == ("a", "observer", [key])
    assert member.revoked is None
    assert store.invitations() == [invited]
    (run,) = store.runs()
    assert (run.name, run.plan, run.creator, run.created) == (
        "demo",
        info.plan,
        "rita",
        1.5,
    )
    assert (run.state, run.rounds, run.blake3, run.error) == (
        "failed",
        2,
        "ab",
        "no quorum",
    )
    store.close()


def test_an_enrolment_voids_all_invitations_for_that_name(path: Path) -> None:
    store = Store(path)
    for name in ("a", "a", "b"):
        store.invite(_invited(name), creator="admin")

    store.enrol("a", "site", _key())

    assert {one.name for one in store.invitations() if one.used is None} == {"b"}
    store.close()


def test_an_enrolment_that_fails_changes_nothing(path: Path) -> None:
    store = Store(path)
    key = _key()
    store.enrol("a", "site", key)
    store.invite(_invited("a"), creator="admin")

    with pytest.raises(sqlite3.IntegrityError):
        store.add_key("a", key, old_until=0.0)

    assert [one.keys for one in store.members()] == [[key]]
    store.close()


def test_a_revoked_member_has_no_key_and_no_invitation(path: Path) -> None:
    store = Store(path)
    store.enrol("a", "site", _key())
    store.invite(_invited("a"), creator="admin")

    store.revoke("a")

    (member,) = store.members()
    assert member.keys == []
    assert member.revoked is not None
    assert [one.used is None for one in store.invitations()] == [False]
    store.close()


def test_keys_that_have_expired_are_gone_with_the_next_change(path: Path) -> None:
    store = Store(path)
    keys = [_key() for _ in range(5)]
    store.enrol("a", "site", keys[0])
    for key in keys[1:]:
        store.add_key("a", key, old_until=time.time() - 1)

    assert [key for key, _, _ in store.all_keys()] == keys[-2:]
    store.close()


def test_nobody_else_may_read_it(path: Path) -> None:
    store = Store(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()


def test_two_servers_do_not_share_one(path: Path) -> None:
    store = Store(path)
    store.enrol("a", "site", _key())

    with pytest.raises(ConfigurationError, match="is another server running on this"):
        Store(path)

    store.close()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("something else, and long enough to be looked at " * 100)

    with pytest.raises(ConfigurationError, match=r"store.sqlite"):
        Store(path)
