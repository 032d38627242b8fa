"""Tells sites of global models, and knows who trains from the newest one."""

from collections.abc import Collection, Mapping
from typing import final

from flare_core.application._distribution import Distribution, Send
from flare_core.application._publication import Publication
from flare_core.application._round_report import RoundReport
from flare_core.communication import Want


@final
class Announcing:
    """One global model after the other on its way to the sites.

    Args:
        send: How to reach a site.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._distribution: Distribution | None = None
        self._training = set[str]()

    def open(
        self,
        model: Publication,
        number: int,
        *,
        final: bool,
        counted: Mapping[str, int],
        report: RoundReport,
    ) -> None:
        """Go on with the next model; see `Distribution`."""
        self._distribution = Distribution(
            model,
            number,
            final=final,
            counted=counted,
            send=self._send,
            report=report,
        )

    def tell(self, site: str) -> None:
        """Tell a site of the model: it trains from now on."""
        if self._distribution is not None:
            self._training.add(site)
            self._distribution.announce(site)

    def trains(self, sites: Collection[str]) -> None:
        """Note that sites may be training, as nothing was heard of them yet."""
        self._training |= set(sites)

    def waits(self, site: str) -> None:
        """Note that a site trains no more: it has handed in, asks again, or is gone."""
        self._training.discard(site)

    def waiting(self, sites: Collection[str]) -> list[str]:
        """Return those of some sites that do not train, by name."""
        return sorted(set(sites) - self._training)

    def serve(self, site: str, want: Want) -> None:
        """Send what a site asks for of the model."""
        if self._distribution is not None:
            self._distribution.serve(site, want)

    def shared(self, site: str) -> None:
        """Note that a site has taken the model from the spool that it shares."""
        if self._distribution is not None:
            self._distribution.shared(site)
