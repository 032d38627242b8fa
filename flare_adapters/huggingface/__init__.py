"""The adapter for the Hugging Face `Trainer`: add one callback."""

from flare_adapters._extras import extra as _extra

with _extra("huggingface", "accelerate", "peft", "transformers"):
    import accelerate as _accelerate  # noqa: F401
    import peft as _peft  # noqa: F401
    import transformers as _transformers

from flare_adapters.huggingface._callback import FLCallback
from flare_adapters.huggingface._train import recovering as _recovering

# a callback is shown no Trainer, and called after it has read where to resume from
_transformers.Trainer.train = _recovering(_transformers.Trainer.train)

__all__ = ["FLCallback"]
