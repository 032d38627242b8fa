"""Puts global models, and the rounds that they come out of, on record."""

from collections.abc import Callable
from functools import partial
from typing import final

import msgspec

from flare_core.application._events import (
    Observer,
    Published,
    RoundPlayed,
    RoundRecord,
)
from flare_core.application._ledger import Ledger
from flare_core.application._publication import Publication, blake3_of
from flare_core.application._worker import Worker
from flare_core.federation import Round


@final
class OnRecord:
    """Takes the hash of each global model, and tells of it.

    Args:
        worker: Takes the hashes while the server answers.
        ledger: Keeps them.
        observer: Told of each model, and of the round before.
        then: Called with the number and the hash of each.
    """

    def __init__(
        self,
        *,
        worker: Worker,
        ledger: Ledger,
        observer: Observer,
        then: Callable[[int, str], None],
    ) -> None:
        self._worker = worker
        self._ledger = ledger
        self._observer = observer
        self._then = then

    def put(
        self,
        model: Publication,
        current: Round,
        record: RoundRecord | None,
        *,
        final: bool,
    ) -> None:
        """Put a model on record.

        Args:
            model: It.
            current: The round that starts from it.
            record: Of the round that it came out of, if that has to be told.
            final: Whether it is the last one.
        """
        number, path, weights = current.number, model.model.path, model.weights
        cohort = () if final else current.cohort

        def hashed(blake3: str) -> None:
            self._ledger.keep(
                lambda archive: archive.keep_model(
                    number, path, blake3, weights.layout
                ),
                partial(kept, blake3),
            )

        def kept(blake3: str) -> None:
            self._observer(Published(number, path, weights, blake3, final, cohort))
            self._tell(number, blake3, record)

        self._worker.do(partial(blake3_of, path), hashed)

    def _tell(self, number: int, blake3: str, record: RoundRecord | None) -> None:
        played = record and msgspec.structs.replace(record, blake3=blake3)
        if played is not None:
            self._observer(RoundPlayed(played))
        self._ledger.write(lambda store: store.recorded(number, blake3, played))
        self._then(number, blake3)
