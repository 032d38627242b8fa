"""Whatever happens to members, in whatever order: who is let in, and who is not."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from flare_core import RequestDeniedError
from flare_core.communication import KeyPair, Limits, Role
from flare_core.management._deployment._registry import INVITED, Registry
from flare_core.management._deployment._store import Store

_NAMES = st.sampled_from(["a", "b"])
_ROLES = st.sampled_from(["admin", "researcher", "site", "observer"])
_FOR_EVER_S, _NEVER_S = 1e9, 1e-9


class Invited(NamedTuple):
    key: str
    name: str
    role: Role


def _fresh() -> str:
    return KeyPair.new().public.decode()


def _denied(act: Callable[[], object]) -> None:
    with pytest.raises(RequestDeniedError):
        act()


def _opened(folder: Path, *, old_key_s: float = _FOR_EVER_S) -> tuple[Store, Registry]:
    store = Store(folder / "store.sqlite")
    keys = KeyPair.new()
    registry = Registry(
        keys, Limits(), store, old_key_s=old_key_s, turned_away=lambda _: None
    )
    return store, registry


class Members(RuleBasedStateMachine):
    """Knows of every key that ever was whose it is now, and asks the registry."""

    invitations = Bundle[Invited]("invitations")
    keys = Bundle[str]("keys")

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self._opens: dict[str, str] = {}
        self._invited: dict[str, str] = {}
        self._roles: dict[str, Role] = {}
        self._old_key_s = _FOR_EVER_S
        self._store, self._registry = _opened(Path(self._folder.name))

    def teardown(self) -> None:
        self._store.close()
        self._folder.cleanup()

    def _invite(self, name: str, role: Role, *, late: bool) -> str:
        """Return the public key of a new invitation."""
        invitation = self._registry.invite(
            name,
            role,
            valid_s=_NEVER_S if late else _FOR_EVER_S,
            server="tcp://127.0.0.1:1",
            creator="admin",
        )
        return KeyPair.from_token(invitation.token).public.decode()

    @rule(target=invitations, name=_NAMES, role=_ROLES, late=st.booleans())
    def invite(self, name: str, role: Role, *, late: bool) -> Invited:
        if name in self._roles:
            _denied(lambda: self._invite(name, role, late=late))
            return Invited(_fresh(), name, role)
        key = self._invite(name, role, late=late)
        self._opens[key] = "" if late else f"{INVITED}{key}"
        self._invited[key] = name
        return Invited(key, name, role)

    @rule(target=keys, by=invitations)
    def enrol(self, by: Invited) -> str:
        key, user = _fresh(), f"{INVITED}{by.key}"
        if not self._opens.get(by.key):
            _denied(lambda: self._registry.enrol(user, key))
            return key
        self._registry.enrol(user, key)
        self._void_invitations_of(by.name)
        self._opens[key], self._roles[by.name] = by.name, by.role
        return key

    @rule(by=invitations, key=keys)
    def enrol_with_a_known_key(self, by: Invited, key: str) -> None:
        if self._opens.get(key):  # one that holds no more may be forgotten by now
            _denied(lambda: self._registry.enrol(f"{INVITED}{by.key}", key))

    @rule(target=keys, name=_NAMES)
    def rotate(self, name: str) -> str:
        key = _fresh()
        held = [one for one, whose in self._opens.items() if whose == name]
        if len(held) >= 8:
            _denied(lambda: self._registry.rotate(name, key))
        elif held:  # who has none cannot ask
            assert self._registry.rotate(name, key)
            if self._old_key_s == _NEVER_S:
                self._opens |= dict.fromkeys(held, "")
            self._opens[key] = name
        return key

    @rule(name=_NAMES, key=keys)
    def rotate_to_a_known_key(self, name: str, key: str) -> None:
        if name in self._roles and self._opens.get(key) == name:
            assert not self._registry.rotate(name, key)  # asked twice
        elif name in self._roles and self._opens.get(key):
            _denied(lambda: self._registry.rotate(name, key))

    @rule(name=_NAMES)
    def revoke(self, name: str) -> None:
        if name not in self._roles and name not in self._invited.values():
            _denied(lambda: self._registry.revoke(name))
            return
        self._registry.revoke(name)
        for key, whose in self._opens.items():
            if whose == name:
                self._opens[key] = ""
        self._void_invitations_of(name)
        self._roles.pop(name, None)

    @rule(old_key_s=st.sampled_from([_FOR_EVER_S, _NEVER_S]))
    def start_the_server_again(self, old_key_s: float) -> None:
        self._store.close()
        self._old_key_s = old_key_s
        self._store, self._registry = _opened(
            Path(self._folder.name), old_key_s=old_key_s
        )

    @invariant()
    def lets_in_whose_key_it_is_and_nobody_else(self) -> None:
        assert self._registry.admit(_fresh()) == ""
        for key, whose in self._opens.items():
            assert self._registry.admit(key) == whose

    @invariant()
    def knows_its_members(self) -> None:
        for name in ("a", "b"):
            assert self._registry.knows(name) is (name in self._roles)
        for name, role in self._roles.items():
            assert self._registry.role(name) == role
        for member in self._registry.members():
            theirs = [key for key, whose in self._opens.items() if whose == member.name]
            assert sorted(member.keys) == sorted(theirs)

    def _void_invitations_of(self, name: str) -> None:
        for key, whose in self._invited.items():
            if whose == name:
                self._opens[key] = ""


TestMembers = Members.TestCase
TestMembers.settings = settings(deadline=None, stateful_step_count=30, max_examples=40)


def test_says_of_a_key_that_is_not_let_in_what_it_was(tmp_path: Path) -> None:
    store, registry = _opened(tmp_path, old_key_s=_NEVER_S)
    first, second, stranger = _fresh(), _fresh(), _fresh()
    registry.add("a", "site", first)
    assert registry.rotate("a", second)

    assert registry.about(first) == "expired key of a"
    registry.revoke("a")
    assert registry.about(second) == "revoked key of a"
    assert registry.about(stranger) == ""
    store.close()


def test_whoever_may_read_the_servers_folder_is_its_admin_again_after_a_revocation(
    tmp_path: Path,
) -> None:
    key = _fresh()
    store, registry = _opened(tmp_path)
    registry.add("admin", "admin", key)
    registry.revoke("admin")
    assert registry.admit(key) == ""

    registry.add("admin", "admin", key)  # as the next start does

    assert registry.admit(key) == "admin"
    assert registry.knows("admin")
    store.close()


def test_who_got_the_name_of_a_revoked_admin_does_not_get_his_role(
    tmp_path: Path,
) -> None:
    store, registry = _opened(tmp_path)
    key, other = _fresh(), _fresh()
    registry.add("admin", "admin", key)
    registry.revoke("admin")
    invited = registry.invite("admin", "site", valid_s=60, server="", creator="bob")
    token_key = KeyPair.from_token(invited.token).public.decode()
    registry.enrol(INVITED + token_key, other)
    assert (registry.admit(other), registry.role("admin")) == ("admin", "site")

    registry.add("admin", "admin", key)  # as the next start does

    assert registry.admit(key) == "admin"
    assert registry.role("admin") == "admin"
    assert registry.admit(other) == ""
    store.close()


def test_holds_a_changed_key_no_longer_than_it_is_told_to(tmp_path: Path) -> None:
    store, registry = _opened(tmp_path, old_key_s=_NEVER_S)
    before, after = _fresh(), _fresh()
    registry.add("a", "site", before)

    registry.rotate("a", after)

    assert registry.admit(before) == ""
    assert registry.admit(after) == "a"
    store.close()


def test_a_key_that_was_changed_holds_no_longer_than_the_settings_say_now(
    tmp_path: Path,
) -> None:
    first, second, third = _fresh(), _fresh(), _fresh()
    store, registry = _opened(tmp_path)
    registry.add("a", "site", first)
    assert registry.rotate("a", second)
    store.close()

    store, registry = _opened(tmp_path, old_key_s=_NEVER_S)
    assert registry.rotate("a", third)

    assert [registry.admit(key) for key in (first, second, third)] == ["", "", "a"]
    store.close()
