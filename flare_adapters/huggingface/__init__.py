"""The adapter for the Hugging Face `Trainer`: add one callback."""

from flare_adapters._extras import extra as _extra

with _extra("huggingface", "accelerate", "peft", "transformers"):
    import accelerate as _accelerate  # noqa: F401
    import peft as _peft  # noqa: F401
    import transformers as _transformers

from flare_adapters.huggingface._callback import FLCallback
from flare_adapters.huggingface._train import recovering as _recovering

_trainer = _transformers.Trainer
_trainer.train = _recovering(_trainer.train)

__all__ = ["FLCallback"]
