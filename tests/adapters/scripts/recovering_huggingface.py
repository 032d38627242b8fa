"""A script that trains with the Hugging Face Trainer, to be killed and started again.

It writes down each step, log, evaluation and checkpoint in FOLDER/trace.jsonl, and
waits at a POINT, on the pipe FOLDER/gate, until a test lets it go on.
    recovering_huggingface.py FOLDER epochs|steps callback|late|nothing [POINT]
A point is "step N" (the step after the Nth has begun), "saved N" (round N is on disk,
its update not on its way yet) or "loaded N" (the global model after step N is there).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

VOCABULARY = 50
LENGTH = 8
NUM_ROWS = 10
_CLOCKS = ("_runtime", "_per_second")


def net(kind: str) -> Any:
    """A GPT-2 of one layer, with dropout; for rounds of steps, with LoRA weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes))
    if kind == "epochs":
        return model
    lora = LoraConfig(
        r=2, target_modules=["c_attn"], lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora)


def rows(seed: int) -> list[dict[str, torch.Tensor]]:
    """Return some rows of a language model."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, VOCABULARY, (NUM_ROWS, LENGTH), generator=generator)
    return [{"input_ids": ids, "labels": ids.clone()} for ids in found]


def arguments(folder: Path, kind: str) -> TrainingArguments:
    """Three steps an epoch of five batches, or five steps an epoch."""
    often = {"epochs": {}, "steps": {"eval_steps": 2, "save_steps": 4}}
    return TrainingArguments(
        output_dir=str(folder / "out"),
        report_to=[],
        learning_rate=0.05,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2 if kind == "epochs" else 1,
        eval_strategy="epoch" if kind == "epochs" else "steps",
        eval_on_start=kind == "epochs",
        save_strategy="epoch" if kind == "epochs" else "steps",
        metric_for_best_model="eval_loss",
        load_best_model_at_end=kind == "epochs",
        logging_steps=4,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **often[kind],
    )


class Trace(TrainerCallback):
    """Writes down what happens; is held at one point."""

    def __init__(self, folder: Path, stopping: EarlyStoppingCallback) -> None:
        self._folder = folder
        self._stopping = stopping
        self._point = ""

    def hold_at(self, point: str) -> None:
        """Wait at a point of this process."""
        self._point = point
        saves: list[str] = []

        def heard(event: str, arguments: Any) -> None:
            # what RoundCheckpoint does last, and once before
            if event == "shutil.rmtree" and str(arguments[0]).endswith("before"):
                saves.append(event)
                if len(saves) % 2 == 0:
                    self._hold(f"saved {len(saves) // 2 - 1}")

        if point.startswith("saved"):
            sys.addaudithook(heard)

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._hold(f"step {state.global_step}")

    def on_step_end(
        self, _: Any, state: Any, *__: Any, optimizer: Any, **___: Any
    ) -> None:
        self._hold(f"loaded {state.global_step}")
        rate = optimizer.param_groups[0]["lr"]
        self._write("step", state, [rate, state.epoch, float(torch.rand(()))])

    def on_epoch_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._hold(f"loaded {state.global_step}.")
        self._write("epoch", state, state.epoch)

    def on_log(
        self, _: Any, state: Any, __: Any, *, logs: dict[str, Any], **___: Any
    ) -> None:
        self._write("log", state, _timeless(logs))

    def on_evaluate(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        patience = self._stopping.early_stopping_patience_counter
        self._write("evaluation", state, patience)

    def on_save(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._write("save", state, state.best_metric)

    def on_train_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._write("end", state, [_timeless(entry) for entry in state.log_history])

    def _write(self, what: str, state: Any, facts: Any) -> None:
        with (self._folder / "trace.jsonl").open("a") as file:
            file.write(json.dumps([what, state.global_step, facts]) + "\n")

    def _hold(self, here: str) -> None:
        if here == self._point:
            (self._folder / "gate").read_text()


def _timeless(logs: dict[str, Any]) -> dict[str, Any]:
    return {n: one for n, one in logs.items() if not n.endswith(_CLOCKS)}


def main() -> None:
    """Train once."""
    folder, kind, says, *point = sys.argv[1:]
    stopping = EarlyStoppingCallback(early_stopping_patience=20)
    trace = Trace(Path(folder), stopping)
    if point:
        trace.hold_at(" ".join(point))
    ours: list[Callable[[], TrainerCallback]] = []
    if says != "nothing":
        from flare_adapters.huggingface import FLCallback  # noqa: PLC0415 - its point

        ours = [FLCallback]
    trainer = Trainer(
        net(kind),
        arguments(Path(folder), kind),
        train_dataset=rows(1),
        eval_dataset=rows(2),
        callbacks=[*(make() for make in ours), stopping, trace],
    )
    trainer.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
