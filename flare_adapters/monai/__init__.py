"""The adapter for MONAI and Ignite: attach one handler, or merge it into a Bundle."""

from flare_adapters._extras import extra as _extra

with _extra("monai", "ignite"):
    import ignite.engine as _ignite  # noqa: F401

from flare_adapters.monai._handler import FLHandler

__all__ = ["FLHandler"]
