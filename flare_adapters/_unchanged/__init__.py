"""Federates a script that says nothing of it, where ``FLARE_ADAPT=1`` asks for that.

Lightning calls `lightning_callbacks` for every Trainer; for the other frameworks, the
``sitecustomize`` in the folder `_startup`, put on ``PYTHONPATH``, watches what a
process imports.  All of it is loaded by processes that train nothing: no module in here
imports anything heavy before it has to.
"""

from flare_adapters._unchanged._lightning import lightning_callbacks

__all__ = ["lightning_callbacks"]
