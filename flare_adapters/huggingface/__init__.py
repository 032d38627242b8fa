"""The adapter for the Hugging Face `Trainer`: add one callback."""

from flare_adapters._extras import extra as _extra

with _extra("huggingface", "accelerate", "peft", "transformers"):
    import accelerate as _accelerate  # noqa: F401
    import peft as _peft  # noqa: F401
    import transformers as _transformers  # noqa: F401

from flare_adapters.huggingface._callback import FLCallback

__all__ = ["FLCallback"]
