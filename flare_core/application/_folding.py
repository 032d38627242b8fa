"""Has the updates of a round folded as soon as they can be, in the cohort's order."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, final

from flare_core._errors import ConfigurationError, Refusal
from flare_core._model import Layout, ModelState
from flare_core._plan import Plan
from flare_core.application._above import Above
from flare_core.application._aggregator import Aggregator
from flare_core.application._distribution import Send
from flare_core.application._lobby import Lobby
from flare_core.application._publication import Memory, Publication
from flare_core.application._regional import RegionalAggregator
from flare_core.application._run_store import check_file
from flare_core.application._spool import Spool
from flare_core.application._swarm import Swarm
from flare_core.application._worker import Worker
from flare_core.communication import SHORT_BYTES, Chunk, ToServer
from flare_core.federation import Contribution, Round, chosen, staleness_of

_log = logging.getLogger(__name__)


@final
class Folding:
    """The updates of one round after the other, from a first model on.

    Args:
        plan: Says how late an update may come.
        aggregator: Makes a model of them.
        spool: For the models.
        worker: Has it done while the server answers.
    """

    defers: Final = False
    """Whether the next model takes as long as a site needs for it."""

    def __init__(
        self,
        plan: Plan,
        aggregator: Aggregator | RegionalAggregator,
        *,
        spool: Spool,
        worker: Worker,
    ) -> None:
        self._aggregator = aggregator
        self._most = staleness_of(plan).most
        self._spool = spool
        self._worker = worker
        self._updates: dict[str, tuple[ModelState, Contribution]] = {}
        self._before = ModelState({})
        self._folded: list[str] = []

    def first(
        self, path: Path, stream: bytes, then: Callable[[Publication | str], None]
    ) -> None:
        """Publish the model that is started from.

        Args:
            path: The file that it arrived in; it is given its name.
            stream: The XXH3-128 of the file.
            then: Called on the server's thread with it, or with why there is none.
        """
        name = self._spool.model(stream)
        self._spool.put(path, name)
        self._look_at_size(name)
        self._worker.do(partial(self._aggregator.first, name, stream), then)

    def resume(self, number: int, stream: bytes, memory: bytes) -> Publication:
        """Go on from a model that an earlier server has published.

        Args:
            number: Of the round that starts from it.
            stream: The XXH3-128 of its file.
            memory: That of what the strategy remembers; empty if that is nothing.

        Raises:
            ConfigurationError: If one of the files is damaged.
        """
        path = self._spool.model(stream)
        check_file(path, f"the global model of round {number}", stream)
        self._spool.hold(path)
        self._look_at_size(path)
        model = self._aggregator.published(path, stream)
        if isinstance(self._aggregator, RegionalAggregator):
            self._worker.do(partial(self._aggregator.rejoin, model))
        if not memory:
            return model
        beside = self._spool.memory(memory)
        check_file(beside, f"what the strategy remembers in round {number}", memory)
        self._spool.hold(beside)
        return replace(model, memory=Memory(beside, memory))

    def earlier(
        self, number: int, streams: Mapping[int, bytes]
    ) -> Iterator[tuple[int, Publication]]:
        """Yield the models of before that late updates may start from, by number.

        Args:
            number: Of the round that is played.
            streams: The XXH3-128 of each model's file, by number.
        """
        for earlier in range(max(0, number - self._most), number):
            path = self._spool.model(streams[earlier])
            try:
                check_file(
                    path, f"the global model of round {earlier}", streams[earlier]
                )
            except ConfigurationError as exc:
                _log.warning("updates that start from it will be refused: %s", exc)
                continue
            self._spool.hold(path)
            yield earlier, self._aggregator.published(path, streams[earlier])

    def begin(self, before: ModelState) -> None:
        """Forget the updates of the round before.

        Args:
            before: The model that the next one starts from.
        """
        self._before = before
        self._updates.clear()
        self._folded = []

    def keep(self, weights: ModelState, update: Contribution) -> None:
        """Take an update, for when its turn comes."""
        self._updates[update.site] = weights, update

    def advance(self, current: Round) -> None:
        """Fold what is ready; anew, if one came that belongs in between."""
        ready = list(current.ready)
        if ready[: len(self._folded)] != self._folded:
            self._worker.do(self._aggregator.begin_anew)
            self._folded = []
        due = ready[len(self._folded) :]
        for site in due:
            add = partial(self._aggregator.add, *self._updates[site], self._before)
            self._worker.do(add)
        self._folded = ready

    def takes(self, site: str, message: ToServer | Chunk) -> bool:
        """Return that no message is about what is combined here."""
        del site, message
        return False

    def lose(self, site: str) -> None:
        """Do nothing: no site has a part in it."""

    def finish(
        self,
        current: Round,
        model: Publication,
        then: Callable[[Publication | str], None],
    ) -> None:
        """Write the next model.

        Args:
            current: The round; it is complete.
            model: The one that the round started from.
            then: Called on the server's thread with it, or with why there is none.
        """
        del current
        self._worker.do(partial(self._aggregator.finish, model), then)

    def _look_at_size(self, path: Path) -> None:
        """Say whether all is done at once, on the server's thread."""
        small = path.stat().st_size <= SHORT_BYTES
        self._worker.small = small and not self._aggregator.blocks


def folding(
    plan: Plan,
    spool: Spool,
    worker: Worker,
    layout: Layout,
    *,
    above: Above | None,
    lobby: Lobby,
    send: Send,
    reject: Callable[[Refusal], None],
) -> Folding | Swarm:
    """Return what makes the models of a run.

    Args:
        plan: Says how updates are combined.
        spool: For the sums and the models.
        worker: Has it done while the server answers.
        layout: Of the global model.
        above: The server above, which makes them, if this is that of a region.
        lobby: Who takes part.
        send: How to reach a site.
        reject: Told of what a site finds ill that combines updates.
    """
    if plan.sealed:
        return Swarm(
            plan,
            layout,
            spool=spool,
            worker=worker,
            lobby=lobby,
            send=send,
            reject=reject,
        )
    strategy, rule = chosen(plan)
    aggregator: Aggregator | RegionalAggregator
    if above is None:
        aggregator = Aggregator(
            plan, layout, strategy=strategy, rule=rule, spool=spool, each=worker.each
        )
    else:
        aggregator = RegionalAggregator(
            plan,
            layout,
            strategy=strategy,
            above=above,
            opened=lobby.first,
            spool=spool,
            each=worker.each,
        )
    return Folding(plan, aggregator, spool=spool, worker=worker)
