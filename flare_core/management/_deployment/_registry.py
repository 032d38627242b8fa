"""Who is let in: the members' keys in memory, backed by the store."""

import secrets
import time
from collections.abc import Callable
from typing import final

from flare_core._errors import RequestDeniedError
from flare_core.communication import (
    Invitation,
    KeyPair,
    Limits,
    Member,
    Role,
    TurnedAway,
    is_key,
)
from flare_core.management._deployment._store import Invited, Store

INVITED = "invitation/"
"""What the name of somebody begins with who has proved an invitation and no more."""
_TOKEN_BYTES = 32
_MOST_KEYS = 8
"""Of one member, at a time."""


@final
class Registry:
    """Knows the members; an `Access` for the server's socket.

    All but `admit`, `knows` and `turned_away`, which the socket calls from a thread of
    its own, is for the server's thread.

    Args:
        keys: The server's own.
        limits: What one peer may take of it.
        store: Where members are kept.
        old_key_s: How long a key still holds after it was changed.
        turned_away: Told of who was not let in, on the socket's thread.
    """

    def __init__(
        self,
        keys: KeyPair,
        limits: Limits,
        store: Store,
        *,
        old_key_s: float,
        turned_away: Callable[[TurnedAway], None],
    ) -> None:
        self.keys = keys
        self.limits = limits
        self._turned_away = turned_away
        self._store = store
        self._old_key_s = old_key_s
        self._names: dict[str, tuple[str, float | None]] = {}
        self._invitations: dict[str, Invited] = {}
        self._members: dict[str, Member] = {}
        self._read()

    def admit(self, key: str) -> str:
        """Return whose key this is; empty if nobody's, or its time is over."""
        name, expires = self._names.get(key, ("", None))
        if name and (expires is None or time.time() < expires):
            return name
        invited = self._invitations.get(key)
        holds = invited and invited.used is None and time.time() < invited.expires
        return f"{INVITED}{key}" if holds else ""

    def knows(self, user: str) -> bool:
        """Return whether somebody who was let in still belongs here."""
        if user.startswith(INVITED):
            return user.removeprefix(INVITED) in self._invitations
        member = self._members.get(user)
        return member is not None and member.revoked is None

    def turned_away(self, event: TurnedAway) -> None:
        """Take note of a connection that was not let in, or was cut off."""
        self._turned_away(event)

    def role(self, user: str) -> Role | None:
        """Return the role of a member; None for one who only has an invitation."""
        return self._members[user].role if user in self._members else None

    def members(self) -> list[Member]:
        """Return all members, the revoked ones too."""
        return self._store.members()

    def about(self, key: str) -> str:
        """Return what is known of a key that is not let in any more."""
        if key in self._names:
            name, _ = self._names[key]
            return f"{'expired' if self.knows(name) else 'revoked'} key of {name}"
        invited = self._invitations.get(key)
        if invited is None:
            return ""
        what = "used" if invited.used is not None else "expired"
        return f"{what} invitation of {invited.name}"

    def invite(
        self, name: str, role: Role, *, valid_s: float, server: str, creator: str
    ) -> Invitation:
        """Return a new invitation.

        Raises:
            RequestDeniedError: If there is such a member.
        """
        member = self._members.get(name)
        if member is not None and member.revoked is None:
            msg = (
                f"{name!r} is a {member.role} here already; "
                f"`flare revoke {name}` first, or choose another name"
            )
            raise RequestDeniedError(msg)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        key = KeyPair.from_token(token).public.decode()
        expires = time.time() + valid_s
        invited = Invited(key=key, name=name, role=role, expires=expires, used=None)
        self._store.invite(invited, creator=creator)
        self._read()
        return Invitation(
            name=name,
            role=role,
            server=server,
            server_key=self.keys.public.decode(),
            token=token,
            expires=expires,
        )

    def enrol(self, user: str, key: str) -> Member:
        """Make the holder of an invitation a member, who is known by this key.

        Raises:
            RequestDeniedError: If it does not hold any more, or the key is no good.
        """
        invited = self._invitations.get(user.removeprefix(INVITED))
        if not user.startswith(INVITED) or invited is None:
            msg = "only an invitation enrols: `flare accept` it"
            raise RequestDeniedError(msg)
        if invited.used is not None or time.time() >= invited.expires:
            msg = f"the invitation of {invited.name!r} was used, or has expired"
            raise RequestDeniedError(msg)
        self._refuse_known(key)
        self._store.enrol(invited.name, invited.role, key)
        self._read()
        return self._members[invited.name]

    def add(self, name: str, role: Role, key: str) -> None:
        """Make somebody a member without an invitation: the admin of this machine.

        Nobody else is, or becomes again, who is called so: an earlier admin may have
        been revoked, and his name given to somebody with another role.
        """
        if self.admit(key) != name:
            self._store.revoke(name)
            self._store.enrol(name, role, key)
            self._read()

    def rotate(self, user: str, key: str) -> bool:
        """Give a member a new key; the old one holds for a while.

        Returns:
            Whether it was not his already: a request may be repeated.

        Raises:
            RequestDeniedError: If that is no key, or somebody's already, or too many
                old ones hold still.
        """
        if self.admit(key) == user:
            return False
        held = [one for one in self._names if self.admit(one) == user]
        if len(held) >= _MOST_KEYS:
            msg = (
                f"{user!r} has {len(held)} keys that hold, and a changed one holds for "
                f"{self._old_key_s:g} s; wait, or have it revoked and invited again"
            )
            raise RequestDeniedError(msg)
        self._refuse_known(key)
        self._store.add_key(user, key, old_until=time.time() + self._old_key_s)
        self._read()
        return True

    def revoke(self, name: str) -> None:
        """Let somebody in no more.

        Raises:
            RequestDeniedError: If there is no such member, nor an invitation for him.
        """
        invited = any(one.name == name for one in self._invitations.values())
        if name not in self._members and not invited:
            msg = f"no member is called {name!r}; see `flare members`"
            raise RequestDeniedError(msg)
        self._store.revoke(name)
        self._read()

    def _refuse_known(self, key: str) -> None:
        if not is_key(key) or key in self._names or key in self._invitations:
            msg = (
                "expected a new public key (Z85), got one that is none or is known; "
                "move the file of the secret key away, and another one is made"
            )
            raise RequestDeniedError(msg)

    def _read(self) -> None:
        """Take over what the store says; each table at once, for the other thread."""
        self._members = {one.name: one for one in self._store.members()}
        keys = self._store.all_keys()
        self._names = {key: (name, until) for key, name, until in keys}
        self._invitations = {one.key: one for one in self._store.invitations()}
