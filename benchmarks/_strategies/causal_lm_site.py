"""A site with texts of one kind, which teaches a small language model to write them.

Its arguments are a seed, the folder of the examples, a number of rounds, the folder of
the model, and the LoRA ranks of the sites.
"""

import sys

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

import flare_core
from flare_adapters.huggingface import FLCallback

seed, examples, rounds, model, *ranks = sys.argv[1:]
sys.path.insert(0, examples)
from huggingface_sentiment import DOMAINS, snippets  # noqa: E402 - it is found by now

STEPS, NUM_TRAIN, NUM_TEST, MAX_TOKENS = 6, 96, 8, 32
site = flare_core.site()
set_seed(int(seed))
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(model)
tokenizer.pad_token = tokenizer.eos_token
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
rank = int(ranks[site.index])
lora = LoraConfig(
    task_type=TaskType.CAUSAL_LM,
    target_modules=["q_proj", "v_proj"],
    r=rank,
    lora_alpha=2 * rank,  # the scale is 2 at all sites
)


def tokens(texts: list[str]) -> list[dict[str, list[int]]]:
    """Return the token ids of texts."""
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [{"input_ids": one} for one in ids]


rows = {domain: [text for text, _ in snippets(domain)] for domain in DOMAINS}
mine = rows[DOMAINS[site.index]][NUM_TEST:][:NUM_TRAIN]
everybodys = [text for texts in rows.values() for text in texts[:NUM_TEST]]
trainer = Trainer(
    model=get_peft_model(base, lora),
    args=TrainingArguments(
        max_steps=STEPS * int(rounds),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=16,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=STEPS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        output_dir=site.folder or ".",
    ),
    train_dataset=tokens(mine),
    eval_dataset=tokens(everybodys),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    callbacks=[FLCallback(every_n_steps=STEPS)],
)
trainer.train()
