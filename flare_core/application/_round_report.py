"""What is measured of one round while it is played."""

import logging
import math
import time
from collections.abc import Mapping
from typing import final

import msgspec

from flare_core._model import Metrics
from flare_core.application._events import Result, RoundRecord, SiteReport
from flare_core.application._publication import Publication
from flare_core.communication import Offer
from flare_core.federation import Contribution, weighted_mean

_log = logging.getLogger(__name__)


@final
class RoundReport:
    """Counts bytes, seconds and scores from the moment a global model goes out.

    Args:
        number: The round, counted from 0.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._began = time.monotonic()
        self._bytes_down: dict[str, int] = {}
        self._sites: dict[str, SiteReport] = {}

    def sent(self, site: str, num_bytes: int) -> None:
        """Note that bytes of the global model went to a site."""
        self._bytes_down[site] = self._bytes_down.get(site, 0) + num_bytes

    def received(self, site: str, offer: Offer, staleness: int) -> SiteReport:
        """Note an update, and return what there is to say of its site.

        Args:
            site: Whose.
            offer: What it says of the update.
            staleness: How many global models came since the one that it starts from.
        """
        self._sites[site] = SiteReport(
            num_examples=offer.num_examples,
            num_steps=offer.num_steps,
            global_metrics=_finite(f"site {site!r}", offer.global_metrics),
            metrics=_finite(f"site {site!r}", offer.metrics),
            bytes_down=self._bytes_down.get(site, 0),
            bytes_up=offer.num_bytes,
            error_up=offer.error if math.isfinite(offer.error) else 0.0,
            seconds=self._seconds(),
            staleness=staleness,
        )
        return self._sites[site]

    def restored(self, site: str, report: SiteReport) -> None:
        """Note what was said of an update before the server was started again."""
        self._sites[site] = report
        self._began = min(self._began, time.monotonic() - report.seconds)

    def record(
        self,
        cohort: tuple[str, ...],
        weights: Mapping[str, int],
        outcome: Publication,
    ) -> RoundRecord:
        """Return the record of the round; the hash of what came out is to follow.

        Args:
            cohort: The sites that were invited.
            weights: Examples of each site whose update counts.
            outcome: The new model.
        """
        sites = {site: self._sites[site] for site in weights}
        before = {
            site: report.global_metrics
            for site, report in sites.items()
            if not report.staleness  # else it is of another model
        }
        after = {site: report.metrics for site, report in sites.items()}
        return RoundRecord(
            round=self._number,
            cohort=cohort,
            sites=sites,
            num_examples=sum(weights.values()),
            global_metrics=_mean(before, weights),
            metrics=_mean(after, weights),
            bytes_down=sum(report.bytes_down for report in sites.values()),
            bytes_up=sum(report.bytes_up for report in sites.values()),
            error_down=outcome.error if math.isfinite(outcome.error) else 0.0,
            lora=outcome.lora,
            seconds=self._seconds(),
            blake3="",
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def contribution(site: str, offer: Offer) -> Contribution:
    """Return what a site says of its update."""
    return Contribution(
        site=site,
        round_number=offer.round_number,
        num_examples=offer.num_examples,
        num_steps=offer.num_steps,
        metrics=offer.metrics,
        global_metrics=offer.global_metrics,
        members=tuple(
            Contribution(
                site=one.site,
                round_number=offer.round_number,
                num_examples=one.num_examples,
                num_steps=one.num_steps,
                global_metrics=one.global_metrics,
                squared_norm=one.squared_norm,
            )
            for one in offer.summands
        ),
        weight=offer.weight,
    )


def parting(
    result: Result, metrics: Mapping[str, Metrics], weights: Mapping[str, int]
) -> Result:
    """Return the result of a run that was played to its end.

    Args:
        result: Rounds and hash.
        metrics: Of the final model, by site.
        weights: Examples in the last update of each site; one without any weighs 1.
    """
    sites = {one: _finite(f"site {one!r}", metrics[one]) for one in sorted(metrics)}
    of_each = {site: weights.get(site, 1) for site in sites}
    mean = _mean(sites, of_each)
    return msgspec.structs.replace(result, sites=sites, metrics=mean)


def _mean(
    metrics: Mapping[str, Metrics], weights: Mapping[str, int]
) -> dict[str, float]:
    """Return the mean of each metric, unless the sum is beyond all numbers."""
    return _finite("all sites", weighted_mean(metrics, weights))


def _finite(whose: str, metrics: Metrics) -> dict[str, float]:
    """Return the metrics that JSON can hold."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            _log.warning("%s: metric %r is %s: not recorded", whose, name, value)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
