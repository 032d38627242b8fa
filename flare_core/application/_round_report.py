"""What is measured of one round while it is played."""

import logging
import math
import time
from collections.abc import Mapping
from typing import final

from flare_core._model import Metrics, Update
from flare_core.application._events import RoundRecord, SiteReport
from flare_core.federation import weighted_mean

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
        """Note that the global model went to a site."""
        self._bytes_down[site] = num_bytes

    def received(self, update: Update, num_bytes: int) -> SiteReport:
        """Note an update, and return what there is to say of its site."""
        self._sites[update.site] = SiteReport(
            num_examples=update.num_examples,
            global_metrics=_finite(update.site, update.global_metrics),
            metrics=_finite(update.site, update.metrics),
            bytes_down=self._bytes_down[update.site],
            bytes_up=num_bytes,
            seconds=self._seconds(),
        )
        return self._sites[update.site]

    def record(self, weights: Mapping[str, int], sha256: str) -> RoundRecord:
        """Return the record of the round.

        Args:
            weights: Examples of each site whose update counts.
            sha256: Of the global model that came out.
        """
        sites = {site: self._sites[site] for site in weights}
        before = {site: report.global_metrics for site, report in sites.items()}
        after = {site: report.metrics for site, report in sites.items()}
        return RoundRecord(
            round=self._number,
            sites=sites,
            num_examples=sum(weights.values()),
            global_metrics=weighted_mean(before, weights),
            metrics=weighted_mean(after, weights),
            bytes_down=sum(report.bytes_down for report in sites.values()),
            bytes_up=sum(report.bytes_up for report in sites.values()),
            seconds=self._seconds(),
            sha256=sha256,
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _finite(site: str, metrics: Metrics) -> dict[str, float]:
    """Return the metrics that JSON can hold."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            _log.warning("site %r: metric %r is %s: not recorded", site, name, value)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
