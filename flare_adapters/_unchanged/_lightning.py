"""Lightning: an entry point gives every Trainer a callback that waits for a fit."""

from typing import Any

from flare_adapters._extras import extra
from flare_adapters._unchanged._part import asked


def lightning_callbacks() -> list[Any]:
    """Return what Lightning is to add to the callbacks of a Trainer.

    The entry point ``callbacks_factory`` of ``lightning.pytorch`` and of
    ``pytorch_lightning``; nothing, and nothing is loaded, unless a script is to be
    federated that does not do so by itself.
    """
    if not asked():
        return []
    with extra("lightning", "lightning"):
        from flare_adapters._unchanged._fit import FirstFit  # noqa: PLC0415 - heavy
    return [FirstFit()]
