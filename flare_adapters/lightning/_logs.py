"""What was logged in an epoch so far, which Lightning's checkpoints leave out.

Without it the end of an epoch that another process has trained would have no training
metrics: callbacks that watch one of them would fail.  lightning 2.6 has no public view
of any of this.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric


def logs(trainer: Trainer) -> dict[str, Any]:
    """Return what was logged in the epoch, on this rank, as tensors and plain data."""
    connector = trainer._logger_connector  # noqa: SLF001 - see above
    items = trainer.fit_loop.epoch_loop._results.values()  # noqa: SLF001 - see above
    return {
        "items": [_item(one) for one in items if _lasts(one)],
        "metrics": {
            name: [dict(one.metric_state), one.update_count]
            for name, one in _metrics(trainer.lightning_module).items()
        },
        "shown": [
            dict(connector._callback_metrics),  # noqa: SLF001 - see above
            dict(connector._logged_metrics),  # noqa: SLF001 - see above
            dict(connector._progress_bar_metrics),  # noqa: SLF001 - see above
        ],
        "first": connector._first_loop_iter,  # noqa: SLF001 - see above
        "by": connector._current_fx,  # noqa: SLF001 - see above
    }


def log_again(trainer: Trainer, kept: dict[str, Any]) -> None:
    """Put back what `logs` has returned in another process."""
    connector = trainer._logger_connector  # noqa: SLF001 - see above
    metrics = _metrics(trainer.lightning_module)
    for name, (state, count) in kept["metrics"].items():
        for attribute, value in state.items():
            setattr(metrics[name], attribute, value)
        metrics[name]._update_count = count  # noqa: SLF001 - torchmetrics: no setter
    for item in kept["items"]:
        _log_again(trainer, item, metrics)
    shown, logged, progress = kept["shown"]
    connector._callback_metrics.update(shown)  # noqa: SLF001 - see above
    connector._logged_metrics.update(logged)  # noqa: SLF001 - see above
    connector._progress_bar_metrics.update(progress)  # noqa: SLF001 - see above
    connector._first_loop_iter = kept["first"]  # noqa: SLF001 - see above
    connector._current_fx = kept["by"]  # noqa: SLF001 - see above


def _metrics(module: LightningModule) -> dict[str, Any]:
    return {
        name: one for name, one in module.named_modules() if isinstance(one, Metric)
    }


def _lasts(item: Any) -> bool:
    """Return whether an item says something that another process can say too."""
    reduce, group = item.meta.reduce_fx, item.meta.sync.group
    by_torch = getattr(torch, reduce.__name__, None) is reduce
    return not item.has_reset and by_torch and group is None


def _item(item: Any) -> dict[str, Any]:
    meta = item.meta
    names = ["fx", "name", "prog_bar", "logger", "on_step", "on_epoch"]
    names += ["enable_graph", "add_dataloader_idx", "metric_attribute"]
    counts = item.is_tensor and meta.is_mean_reduction
    return {
        "log": {name: getattr(meta, name) for name in names}
        | {
            "reduce_fx": meta.reduce_fx.__name__,
            "sync_dist": meta.sync.should,
            "rank_zero_only": meta.sync.rank_zero_only,
        },
        "value": item.value.detach() if item.is_tensor else None,
        "num": item.cumulated_batch_size if counts else None,
        "step": item._forward_cache,  # noqa: SLF001 - see above
    }


def _log_again(trainer: Trainer, item: dict[str, Any], metrics: dict[str, Any]) -> None:
    results = trainer.fit_loop.epoch_loop._results  # noqa: SLF001 - see above
    log, value = item["log"], item["value"]
    of_metric = metrics[log["metric_attribute"]] if value is None else value
    sync = trainer.strategy.reduce
    results.log(value=of_metric, sync_dist_fn=sync, batch_size=1, **log)
    made = results[f"{log['fx']}.{log['name']}"]
    made._forward_cache = item["step"]  # noqa: SLF001 - see above
    if value is not None:
        made.value = value
    if item["num"] is not None:
        made.cumulated_batch_size = item["num"]
