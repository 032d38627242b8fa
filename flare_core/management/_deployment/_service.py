"""A server for real sites, put together from its folder."""

from contextlib import ExitStack
from functools import partial
from typing import final

from flare_core.application import AuditLog, Host, most_threads
from flare_core.communication import TurnedAway
from flare_core.management._deployment._desk import ServerDesk
from flare_core.management._deployment._folder import ServerFolder
from flare_core.management._deployment._registry import Registry
from flare_core.management._deployment._runs import Runs
from flare_core.management._deployment._server_key import ServerKey
from flare_core.management._deployment._settings import ServerSettings
from flare_core.management._deployment._store import Store
from flare_core.management._deployment._trail import Trail

ADMIN = "admin"
"""The name of whoever may read the server's folder."""


@final
class Service:
    """Listens for members, and plays their runs.

    Args:
        folder: The server's; `ServerFolder.make` makes one.

    Raises:
        ConfigurationError: If a setting is wrong, an address cannot be had, or another
            server has this folder.
    """

    def __init__(self, folder: ServerFolder) -> None:
        settings = folder.settings()
        self._stopped = ""
        self._trail = Trail(AuditLog(folder.path))
        with ExitStack() as undo:
            self._store = Store(folder.store)
            undo.callback(self._store.close)
            registry = self._registry(folder, settings)
            server_key = ServerKey(folder, registry, self._trail)
            self._desk = ServerDesk(registry, self._trail, server_key)
            self._host = Host(
                settings.listen,
                access=registry,
                desk=self._desk,
                patience_s=settings.patience_s,
                num_threads=settings.num_threads or most_threads(),
            )
            self._host.listen(folder.admin_address)
            self._runs = Runs(
                self._host, self._store, folder.runs, self._trail, self._changed
            )
            address = settings.address or self._host.endpoint
            self._desk.opens(self._host, self._runs, address=address)
            undo.pop_all()

    @property
    def endpoint(self) -> str:
        """Where members connect to, with the real port."""
        return self._host.endpoint

    def run(self) -> None:
        """Serve until `stop`."""
        self._trail.note("server started", address=self.endpoint)
        self._trail.sign()
        try:
            self._runs.reopen()
            self._host.serve(until=lambda: bool(self._stopped))
        finally:
            self._host.close()
            self._trail.note("server stopped", reason=self._stopped or "it failed")
            self._trail.sign()
            self._store.close()

    def stop(self, reason: str) -> None:
        """End it; from any thread."""

        def note() -> None:
            self._stopped = reason

        self._host.post(note)

    def _changed(self) -> None:
        self._desk.changed()
        # Who has left is out of the lobby only after the event that says so.
        self._host.post(self._desk.changed)

    def _registry(self, folder: ServerFolder, settings: ServerSettings) -> Registry:
        registry = Registry(
            folder.keys("server"),
            settings.limits,
            self._store,
            old_key_s=settings.old_key_s,
            turned_away=self._turned_away,
        )
        registry.add(ADMIN, "admin", folder.keys(ADMIN).public.decode())
        return registry

    def _turned_away(self, event: TurnedAway) -> None:
        self._host.post(partial(self._desk.turned_away, event))
