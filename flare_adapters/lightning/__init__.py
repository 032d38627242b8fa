"""The adapter for PyTorch Lightning: add one callback, or wrap the strategy."""

from flare_adapters._extras import extra as _extra

with _extra("lightning", "lightning"):
    import lightning.pytorch as _pl  # noqa: F401

from flare_adapters.lightning._callback import FLCallback
from flare_adapters.lightning._strategy import FLStrategy

__all__ = ["FLCallback", "FLStrategy"]
