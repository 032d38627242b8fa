"""How a server changes its key: all hear of the next one before it comes."""

import contextlib
from typing import final

from flare_core._errors import RequestDeniedError
from flare_core.application import Host
from flare_core.communication import KeyPair, NextKey
from flare_core.management._deployment._folder import ServerFolder, write_secret
from flare_core.management._deployment._registry import Registry
from flare_core.management._deployment._trail import Trail


@final
class ServerKey:
    """Announces the next key and changes to it; for the server's thread.

    Connections that are open stay so.  Who connects later needs the key that the server
    has then; so the next one is made, kept in ``server.next`` and told to everybody who
    is connected or connects, until `change`.

    Args:
        folder: The server's.
        registry: Who is to be told.
        trail: Told of both steps.
    """

    def __init__(self, folder: ServerFolder, registry: Registry, trail: Trail) -> None:
        self._folder = folder
        self._registry = registry
        self._trail = trail
        self._told: set[str] = set()
        self.next = ""
        if folder.next_key.exists():  # announced before the server was started
            self.next = KeyPair.read(folder.next_key).public.decode()

    def tells(self, user: str) -> str:
        """Return the next key, if there is one, for somebody who is told of it."""
        if self.next:
            self._told.add(user)
        return self.next

    def announce(self, host: Host, *, user: str) -> NextKey:
        """Make the next key, if there is none, and tell all of it."""
        if not self.next:
            with contextlib.suppress(FileExistsError):
                write_secret(self._folder.next_key, KeyPair.new().secret)
            self.next = KeyPair.read(self._folder.next_key).public.decode()
            self._trail.note("next key announced", user=user, key=self.next)
        self._told |= set(host.announce(self.next))
        members = [one.name for one in self._registry.members() if one.revoked is None]
        untold = [name for name in members if name not in self._told | {user}]
        return NextKey(key=self.next, untold=untold)

    def change(self, host: Host, *, user: str) -> None:
        """Have the next key from now on.

        Raises:
            RequestDeniedError: If none was announced.
        """
        if not self.next:
            msg = "no key was announced: first `flare rotate` without --now"
            raise RequestDeniedError(msg)
        keys = KeyPair.read(self._folder.next_key)
        self._trail.note("server key changed", user=user, key=self.next)
        self._folder.next_key.replace(self._folder.server_key)
        self._registry.keys = keys
        self.next = ""
        self._told.clear()
        # The answer is on its way before the door closes to who knows the old key.
        host.post(lambda: host.renew(keys))
