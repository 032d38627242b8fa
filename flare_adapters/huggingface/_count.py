"""What the model was trained on, read off its forward passes.

A `TrainerCallback` never sees a batch.  The weight of an update must be what the loss
is a mean over, or the federation differs from training on all data together: target
tokens for language models, examples for the rest.
"""

import logging
from collections.abc import Mapping
from typing import Any, final

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

_log = logging.getLogger(__name__)
_IGNORED = -100
_NEXT_TOKEN = ("ForCausalLM", "ForConditionalGeneration")
_SAME_TOKEN = ("ForMaskedLM", "ForTokenClassification")
_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_SEQ2SEQ = frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())


@final
class Tally:
    """Counts between two optimizer steps.

    What is on a GPU is counted there: the host would have to wait to read it.

    Args:
        args: Of the training.
        model: The model whose passes are seen, not wrapped.
    """

    def __init__(self, args: TrainingArguments, model: nn.Module) -> None:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self._by_tokens, self._shifted = _targets_of(base)
        self._across_ranks = args.average_tokens_across_devices
        self._num_ranks = args.world_size
        self._first_rank = args.process_index == 0
        self._device = args.device
        self._said = False
        self._start()

    @torch.compiler.disable
    def see(
        self, module: nn.Module, _: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Count one pass: a forward hook."""
        if not (module.training and torch.is_grad_enabled()):
            return
        self._num_passes += 1
        items = kwargs.get("num_items_in_batch")
        self._divided = items is not None
        if self._by_tokens and items is not None:
            # by which the Trainer divides the whole step's loss, of all ranks if so
            counts = self._first_rank or not self._across_ranks
            total = self._here(torch.as_tensor(items).max())
            self._counts[:] = [total] if counts else []
        elif self._by_tokens:
            self._counts.append(self._targets(kwargs))
        else:
            self._counts.append(_rows(kwargs))
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if isinstance(loss, Tensor):
            self._losses.append(self._here(loss.detach().float().mean()))

    def take(self) -> tuple[int | Tensor, float | Tensor | None]:
        """Return the examples and the loss of a step, as the `Trainer` logs it."""
        num_examples = sum(self._counts)
        loss = sum(self._losses) if self._losses else None
        if loss is not None and not self._divided:
            loss = loss / self._num_passes
        elif loss is not None and self._across_ranks:
            loss = loss * self._num_ranks
        self._start()
        return num_examples, loss

    def _start(self) -> None:
        self._num_passes = 0
        self._counts: list[int | Tensor] = []
        self._losses: list[Tensor] = []
        self._divided = False

    def _here(self, found: Tensor) -> Tensor:
        """Take a number to one device: the passes of a step may run on several."""
        return found.to(self._device)

    def _targets(self, kwargs: Mapping[str, Any]) -> int | Tensor:
        labels = kwargs.get("labels")
        if labels is not None:
            labels = labels[..., 1:] if self._shifted else labels
            return self._here((labels != _IGNORED).sum())
        if not self._said:
            self._said = True
            _log.warning(
                "the Trainer hides the labels from the model (label smoothing, "
                "compute_loss_func): updates weigh by input tokens, not target tokens"
            )
        for name in ("attention_mask", "input_ids"):
            if isinstance(found := kwargs.get(name), Tensor):
                if name == "input_ids":
                    return found.numel()
                return self._here(found.sum(dtype=torch.int64))
        return _rows(kwargs)


def _targets_of(base: nn.Module) -> tuple[bool, bool]:
    """Return whether a model's loss is a mean over tokens, and of which: the next."""
    config = getattr(base, "config", None)
    loss_type = getattr(base, "loss_type", None)
    classes = {one.__name__ for one in type(base).__mro__}
    causal = loss_type in _NEXT_TOKEN or not classes.isdisjoint(_CAUSAL)
    shifted = causal and not getattr(config, "is_encoder_decoder", False)
    by_tokens = causal or loss_type in _SAME_TOKEN or not classes.isdisjoint(_SEQ2SEQ)
    return by_tokens, shifted


def _rows(kwargs: Mapping[str, Any]) -> int:
    """Return the batch's size: the length of its labels, or of its first tensor."""
    tensors = [kwargs.get("labels"), *kwargs.values()]
    return next(
        (len(one) for one in tensors if isinstance(one, Tensor) and one.dim()), 1
    )
