"""What the three adapters share: a model's state, and the time between exchanges."""

from flare_adapters._torch._batch import num_examples
from flare_adapters._torch._checkpoint import random_state, set_random_state
from flare_adapters._torch._exchanged import Form, Wire
from flare_adapters._torch._local import refuse_deepspeed
from flare_adapters._torch._metrics import scalars
from flare_adapters._torch._options import Options, options
from flare_adapters._torch._select import members
from flare_adapters._torch._session import LocalSession

__all__ = [
    "Form",
    "LocalSession",
    "Options",
    "Wire",
    "members",
    "num_examples",
    "options",
    "random_state",
    "refuse_deepspeed",
    "scalars",
    "set_random_state",
]
