"""What the three adapters share: a model's state, and the time between exchanges."""

from flare_adapters._torch._correction import refuse_under_deepspeed
from flare_adapters._torch._options import Options, options
from flare_adapters._torch._session import LocalSession, scalars

__all__ = [
    "LocalSession",
    "Options",
    "options",
    "refuse_under_deepspeed",
    "scalars",
]
