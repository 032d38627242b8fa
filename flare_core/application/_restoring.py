"""Looks again at updates that were committed before this server was started."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, final

from flare_core._errors import Refusal
from flare_core._model import ModelState
from flare_core.application._distribution import Send
from flare_core.application._events import SiteReport
from flare_core.application._intake import Intake
from flare_core.application._lobby import Lobby
from flare_core.application._run_store import KeptUpdate
from flare_core.application._worker import Worker
from flare_core.communication import Again, Parcel
from flare_core.federation import Round

Count: TypeAlias = Callable[[Parcel, ModelState, SiteReport], None]
"""Takes an update that is good, and what was said of it."""


@final
class Restoring:
    """Has a round go on with the updates that are on the disk.

    Args:
        lobby: Who takes part.
        intake: Knows what updates must look like.
        worker: Looks at them meanwhile.
        send: How to reach a site.
        count: Called with each of them that is good.
        go_on: Called when something has changed.
    """

    def __init__(
        self,
        *,
        lobby: Lobby,
        intake: Intake,
        worker: Worker,
        send: Send,
        count: Count,
        go_on: Callable[[Round], None],
    ) -> None:
        self._lobby = lobby
        self._intake = intake
        self._worker = worker
        self._send = send
        self._count = count
        self._go_on = go_on

    def begin(self, current: Round, updates: Sequence[KeptUpdate]) -> None:
        """Restore a round: its updates, and who is gone that has sent none."""
        for site in self._lobby.gone.keys() - {one.site for one in updates}:
            self.do_without(site, current)
        for update in updates:
            parcel = self._intake.restored(update)
            if parcel is not None:
                looked_at = partial(self._looked_at, parcel, update, current)
                self._worker.do(self._intake.inspection(parcel), looked_at)
            elif update.site in self._lobby.gone:
                self.do_without(update.site, current)

    def do_without(self, site: str, current: Round) -> None:
        """Wait for a site no more that was gone before the round was open."""
        current.lose(site)
        self._intake.forget(site)

    def _looked_at(
        self,
        parcel: Parcel,
        update: KeptUpdate,
        current: Round,
        weights: ModelState | Refusal,
    ) -> None:
        if self._intake.looked(parcel.site):
            self._send(parcel.site, Again())
        if isinstance(weights, Refusal):
            self._intake.ask_again(weights)
            if parcel.site in self._lobby.gone:
                self.do_without(parcel.site, current)
        elif current.receive(parcel.site, current.number, parcel.offer.num_examples):
            self._count(parcel, weights, update.report)
        self._go_on(current)
