"""A server for real sites, put together from its folder."""

import logging
from contextlib import ExitStack
from functools import partial
from typing import final

from flare_core._plan import Plan
from flare_core.application import AuditLog, Host, most_threads, plan_below
from flare_core.communication import TurnedAway
from flare_core.management._deployment._above import RegionAbove
from flare_core.management._deployment._desk import ServerDesk
from flare_core.management._deployment._folder import ServerFolder
from flare_core.management._deployment._registry import Registry
from flare_core.management._deployment._runs import ABOVE, Runs
from flare_core.management._deployment._server_key import ServerKey
from flare_core.management._deployment._settings import ServerSettings
from flare_core.management._deployment._store import Store
from flare_core.management._deployment._trail import Trail

_log = logging.getLogger(__name__)
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
            self._region = settings.region
            self._above = self._listening(folder, settings)
            self._runs = Runs(
                self._host,
                self._store,
                folder.runs,
                self._trail,
                self._changed,
                part_in=self._above and self._above.part_in,
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
            if self._above is not None:
                self._above.start()
            self._host.serve(until=lambda: bool(self._stopped))
        finally:
            if self._above is not None:
                self._above.stop()
            self._host.close()
            self._trail.note("server stopped", reason=self._stopped or "it failed")
            self._trail.sign()
            self._store.close()

    def stop(self, reason: str) -> None:
        """End it; from any thread."""

        def note() -> None:
            self._stopped = reason

        self._host.post(note)

    def _listening(
        self, folder: ServerFolder, settings: ServerSettings
    ) -> RegionAbove | None:
        """Return what listens for runs of the server above, if there is one."""
        if settings.region is None:
            return None
        path = folder.path / settings.region.site

        def begin(name: str, plan: Plan) -> None:
            self._host.post(partial(self._take_part, name, plan))

        return RegionAbove(path, begin)

    def _take_part(self, name: str, plan: Plan) -> None:
        """Open the region's part of a run above, unless that was done before."""
        region = self._region
        assert region is not None  # noqa: S101 - else nobody calls this
        if not plan.by_region:
            _log.warning(
                "run %s of the server above: expected topology.name = 'hierarchical' "
                "for a region to take part, got another; it does not",
                name,
            )
            return
        below = plan_below(plan, sites=region.sites, quorum=region.quorum)
        self._runs.create(name, below, creator=ABOVE)

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
