"""A site that trains with the Hugging Face Trainer, for tests with several sites.

Accelerate's state is the process's own, so each site is a process: this one reads
cases, one a line, plays them and answers by a line.  With an argument it plays that
one case; started by torchrun, as one rank of the site.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from flare_adapters.huggingface import FLCallback

VOCABULARY = 50
LENGTH = 12
NUM_ROWS = {"a": 6, "b": 10}
"""Rows of each site."""
NUM_TARGETS = {"a": 3, "b": 7}
"""Target tokens of each row of a site; its first token is none."""
LR = 0.5

Row = dict[str, Tensor]


class Case(msgspec.Struct, kw_only=True):
    """One training at one site.

    Attributes:
        kind: Of the model and the data, see `KINDS` and `rows`.
        site: Name of the site, whose rows are taken.
        file: Its site file.
        folder: Where the `Trainer` may write.
        seed: Of the weights that are not frozen.
        settings: For `TrainingArguments`.
        options: For `FLCallback`.
    """

    kind: str
    site: str
    file: str
    folder: str
    seed: int = 0
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}

    @property
    def weights(self) -> Path:
        """Where the trained parameters are left."""
        return Path(self.folder) / f"{self.site}.safetensors"


def llama(*, seed: int, size: int = 16, tied: bool = False, **settings: Any) -> Any:
    """A Llama of one layer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
        **settings,
    )
    return LlamaForCausalLM(config)


def gpt2(*, seed: int, dropout: float) -> Any:
    """A GPT-2 of one layer, whose output embedding is the input one."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return GPT2LMHeadModel(config)


def lora(*, seed: int, base_seed: int = 42, rank: int = 4, **settings: Any) -> Any:
    """The same Llama, frozen, with LoRA weights of the site's own."""
    base = llama(seed=base_seed)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        **settings,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by an old name
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base, config)


def bert(*, seed: int) -> Any:
    """A classifier of one layer."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return BertForSequenceClassification(config)


KINDS: dict[str, Callable[..., Any]] = {
    "bert": bert,
    "gpt2": partial(gpt2, dropout=0.0),
    "gpt2+dropout": partial(gpt2, dropout=0.1),
    "llama": llama,
    "lora": lora,
    "lora+dropout": partial(lora, lora_dropout=0.1),
    "lora+head": partial(lora, modules_to_save=["lm_head"]),
    "tied": partial(llama, tied=True),
}
"""Models by name; each is made with ``seed=``."""


def rows(kind: str, site: str) -> list[Row]:
    """The data of a site: rows of a language model, or of a classifier."""
    seed = 100 + "ab".index(site)
    generator = torch.Generator().manual_seed(seed)
    found: list[Row] = []
    for number in range(NUM_ROWS[site]):
        ids = torch.randint(0, VOCABULARY, (LENGTH,), generator=generator)
        labels = ids.clone()
        labels[: LENGTH - NUM_TARGETS[site]] = -100
        found.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": torch.tensor(number % 2) if kind == "bert" else labels,
            }
        )
    return found


def arguments(folder: str, **settings: Any) -> TrainingArguments:
    """Plain SGD, one epoch in one batch, unless told otherwise."""
    defaults: dict[str, Any] = {
        "output_dir": folder,
        "report_to": [],
        "optim": "sgd",
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return TrainingArguments(**(defaults | settings))


def play(case: Case) -> Trainer:
    """Train as a site, and leave the parameters in a file."""
    trainer = Trainer(
        model=KINDS[case.kind](seed=case.seed),
        args=arguments(case.folder, **case.settings),
        train_dataset=rows(case.kind, case.site),
        eval_dataset=rows(case.kind, case.site),
        callbacks=[FLCallback(case.file, **case.options)],
    )
    trainer.train()
    require_same_on_ranks(trainer.model)
    if trainer.is_world_process_zero():
        found = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        save_file(found, case.weights)
    return trainer


def require_same_on_ranks(trained: nn.Module) -> None:
    """Raise if the ranks of the site hold different weights."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([p.detach().flatten() for p in trained.parameters()])
    of_ranks = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, flat)
    if not all(torch.equal(flat, other) for other in of_ranks):
        msg = "the ranks hold different weights"
        raise RuntimeError(msg)


def main() -> None:
    """Play one case, or what comes in over standard input."""
    if len(sys.argv) > 1:
        play(msgspec.json.decode(sys.argv[1], type=Case))
        os._exit(0)  # else gloo may abort it, see ranks.py
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    sys.stdout = sys.stderr  # the Trainer prints
    for line in sys.stdin:
        try:
            play(msgspec.json.decode(line, type=Case))
        except Exception as exc:  # noqa: BLE001 - the test judges
            answers.write(json.dumps(f"{type(exc).__name__}: {exc}") + "\n")
        else:
            answers.write(json.dumps("") + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
