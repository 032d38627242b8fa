"""A `Trainer` script of a site, with dropout, AdamW and a schedule over all rounds."""

from tempfile import TemporaryDirectory

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

import flare_core as flare
from flare_adapters.huggingface import FLCallback


def main() -> None:
    """Train."""
    set_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(ord(flare.site().name[0]))
    tokens = torch.randint(0, 50, (48, 6), generator=generator)
    rows = [{"input_ids": one, "labels": int(one.sum()) % 2} for one in tokens]
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=rows, callbacks=[FLCallback()]
        )
        trainer.train()


main()
