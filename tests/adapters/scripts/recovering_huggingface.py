"""Scripts that train with the Hugging Face Trainer, to be killed and started again.

The process imports the frameworks, which takes the longest, and forks for each script
whose arguments come in, one list a line; it answers with the number of the process, and
when that has ended, with its exit code.
    SITE_FILE FOLDER epochs|steps callback|nothing [POINT]
A script writes down each step, log, evaluation and checkpoint in FOLDER/trace.jsonl,
what it says in FOLDER/said, and waits at a POINT, on the pipe FOLDER/gate, until a test
lets it go on.
A point is "step N" (the step after the Nth has begun), "saved" (this process has saved
a round, its update is not on its way yet), "loaded N" (the global model after step N is
there) or "loaded N." (so at the end of an epoch).
"""

import itertools
import json
import os
import sys
import warnings
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
from transformers.trainer_utils import get_last_checkpoint

VOCABULARY = 50
LENGTH = 8
NUM_ROWS = 10
_CLOCKS = ("_runtime", "_per_second")


def net(kind: str) -> Any:
    """A GPT-2 of one layer, with dropout; for rounds of steps, with LoRA weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    sizes |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    if kind == "epochs":
        return model
    lora = LoraConfig(
        r=2,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by an old name
        warnings.simplefilter("ignore", FutureWarning)
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
        # the order of the data then comes from the random numbers, not from the seed
        accelerator_config={"use_seedable_sampler": kind == "epochs"},
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
        times = itertools.count(1)

        def heard(event: str, arguments: Any) -> None:
            # what RoundCheckpoint does last, and once before
            if event == "shutil.rmtree" and str(arguments[0]).endswith("before"):
                self._hold("saved" if next(times) == 2 else "")

        if point == "saved":
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
        if here and here == self._point:
            (self._folder / "gate").read_text()


def _timeless(logs: dict[str, Any]) -> dict[str, Any]:
    return {n: one for n, one in logs.items() if not n.endswith(_CLOCKS)}


def train(file: str, folder: Path, kind: str, says: str, point: str = "") -> None:
    """Train once, as a script of its own."""
    os.environ["FLARE_SITE"] = file
    os.chdir(folder)
    with Path("said").open("w") as said:
        for number in (1, 2):
            os.dup2(said.fileno(), number)
    stopping = EarlyStoppingCallback(early_stopping_patience=20)
    trace = Trace(folder, stopping)
    trace.hold_at(point)
    callbacks: list[TrainerCallback] = [stopping, trace]
    if says == "callback":
        from flare_adapters.huggingface import FLCallback  # noqa: PLC0415 - its point

        callbacks.insert(0, FLCallback())
    trainer = Trainer(
        net(kind),
        arguments(folder, kind),
        train_dataset=rows(1),
        eval_dataset=rows(2),
        callbacks=callbacks,
    )
    own = get_last_checkpoint("out") if Path("out").exists() else None
    trainer.train(resume_from_checkpoint=own)


def main() -> None:
    """Fork for each script."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    for line in sys.stdin:
        file, folder, *more = json.loads(line)
        child = os.fork()
        if child == 0:
            train(file, Path(folder), *more)
            return
        answers.write(f"{child}\n")
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
