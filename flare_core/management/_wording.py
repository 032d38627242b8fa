"""Numbers as people read them, the same in every table and line."""

from rich.filesize import decimal

from flare_core._model import Metrics
from flare_core.application import Best, LoraReport, RoundRecord, SiteReport

_MOST_METRICS = 4
_EXACT = 1e-12
"""Relative; what is below it is rounding in float64."""
_MOST_SITES = 8


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


def best_text(best: Best, rounds: int) -> str:
    """Return which global model is the best, of so many rounds."""
    which = "the final model"
    if best.number < rounds:
        which = f"the one that round {best.number} started from"
    return f"{which}, {metrics_text({best.metric: best.value})}"


def cohort_text(record: RoundRecord, num_sites: int) -> str:
    """Return whose updates a round is made of; empty if all sites'."""
    sites = list(record.sites)
    if len(sites) >= num_sites:
        return ""
    more = ["…"] if len(sites) > _MOST_SITES else []
    names = ", ".join([*sites[:_MOST_SITES], *more])
    return f"{len(sites)} of {counted(num_sites, 'site')} ({names})"


def lora_text(lora: LoraReport) -> str:
    """Return how LoRA weights were combined, and how far that is from the mean."""
    worst = ""
    if lora.worst_error > _EXACT:
        worst = f", most in {lora.worst_module} ({lora.worst_error:.2g})"
    return (
        f"LoRA by {lora.aggregate}: {_off(lora.error)}{worst}; averaged factors "
        f"{_off(lora.averaging_error)}; energy kept {lora.retained:.2%}"
    )


def _off(error: float) -> str:
    return f"off by {error:.2g}" if error > _EXACT else "exact"


def bytes_text(count: int) -> str:
    """Return a number of bytes, e.g. ``"1.2 MB"``."""
    return decimal(count)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, e.g. ``"1 site"`` or ``"2,000 sites"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
