"""A site of `examples/huggingface_sentiment.py`, with texts of one kind.

Its arguments are a seed, the folder of the examples, and a number of rounds.
"""

import os
import sys

from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import flare_core
from flare_adapters.huggingface import FLCallback

seed, examples, rounds = sys.argv[1:]
sys.path.insert(0, examples)
from huggingface_sentiment import (  # noqa: E402 - it is found by now
    accuracy,
    language_model,
    load,
    tokenized,
)

os.environ["TOKENIZERS_PARALLELISM"] = "false"
SHARES = (1.0, 0.5, 0.3, 0.2)  # of its texts that a site has
site = flare_core.site()
set_seed(int(seed))
tokenizer = AutoTokenizer.from_pretrained(language_model())
base = AutoModelForSequenceClassification.from_pretrained(language_model())
lora = LoraConfig(
    task_type=TaskType.SEQ_CLS,
    target_modules=["query", "value"],
    layers_to_transform=[3, 4, 5],
    lora_alpha=16,
)
train, test = load(site.index, site.count)
train = train[: int(len(train) * SHARES[site.index])]
trainer = Trainer(
    model=get_peft_model(base, lora),
    args=TrainingArguments(
        num_train_epochs=int(rounds),
        per_device_train_batch_size=8,
        per_device_eval_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        output_dir=site.folder or ".",
    ),
    train_dataset=tokenized(train, tokenizer),
    eval_dataset=tokenized(test[::2], tokenizer),
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=accuracy,
    callbacks=[FLCallback(every_n_epochs=1)],
)
trainer.train()
