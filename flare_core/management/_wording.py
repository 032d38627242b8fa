"""Numbers as people read them, the same in every table and line."""

from rich.filesize import decimal

from flare_core._model import Metrics
from flare_core.application import RoundRecord, SiteReport

_MOST_METRICS = 4


def metrics_text(metrics: Metrics) -> str:
    """Return scalars in a line, losses first, e.g. ``"loss 0.312  acc 0.91"``."""
    names = sorted(metrics, key=lambda name: ("loss" not in name, name))
    shown = [f"{name} {metrics[name]:.4g}" for name in names[:_MOST_METRICS]]
    more = ["…"] if len(names) > _MOST_METRICS else []
    return "  ".join([*shown, *more])


def scores_text(report: SiteReport | RoundRecord) -> str:
    """Return what was measured: after training, and of the model it started from."""
    before = metrics_text(report.global_metrics)
    after = metrics_text(report.metrics)
    return f"{after} (global model: {before})" if before else after


def bytes_text(count: int) -> str:
    """Return a number of bytes, e.g. ``"1.2 MB"``."""
    return decimal(count)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, e.g. ``"1 site"`` or ``"2,000 sites"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
