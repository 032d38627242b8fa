"""Keeps updates, and tells sites that they are safe as soon as they are."""

from collections.abc import Callable
from functools import partial
from typing import final

from flare_core.application._distribution import Send
from flare_core.application._events import SiteReport
from flare_core.application._ledger import Ledger
from flare_core.application._run_store import RunStore
from flare_core.communication import Committed, Offer, Parcel


@final
class Receipts:
    """The updates of one round after the other.

    Once a round is closed, they are kept as the model that they are part of.

    Args:
        ledger: Keeps what must outlive this server.
        send: How to reach a site.

    Attributes:
        closing: The round that is closed while its model is being made; None if none.
    """

    def __init__(self, ledger: Ledger, send: Send) -> None:
        self._ledger = ledger
        self._send = send
        self._owed: list[tuple[str, Offer]] = []
        self._held: list[Callable[[], object]] = []
        self.closing: int | None = None

    def commit(self, parcel: Parcel, report: SiteReport) -> None:
        """Keep an update, unless the model that it is part of is kept next."""
        self._ledger.write(
            partial(self._write, parcel, report),
            partial(self._written, parcel.site, parcel.offer),
        )

    def hold(self, act: Callable[[], object]) -> None:
        """Do something with an update once the next round is open."""
        self._held.append(act)

    def release(self) -> None:
        """Do what was held."""
        held, self._held = self._held, []
        for act in held:
            act()

    def opened(self) -> None:
        """Tell those whose updates are in a model that is kept by now."""
        self.closing = None
        for site, offer in self._owed:
            self._written(site, offer)
        self._owed.clear()

    def _write(self, parcel: Parcel, report: SiteReport, store: RunStore) -> None:
        if self.closing is None:
            store.committed(parcel, report)

    def _written(self, site: str, offer: Offer) -> None:
        if self.closing == offer.round_number:
            self._owed.append((site, offer))
        else:
            self._send(site, Committed(stream=offer.stream))
