"""A script that says nothing of a federation, unless its last argument tells it to.

It trains twice; the first training is the one of the run.
    silent.py FRAMEWORK PART nothing|callback|late|strategy
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

FEATURES = 4
NUM_ROWS = 32
Row = dict[str, Tensor]


def rows(part: int) -> list[Row]:
    """Return the data of a site."""
    generator = torch.Generator().manual_seed(part)
    features = torch.randn(NUM_ROWS, FEATURES, generator=generator)
    return [{"x": one, "labels": one.sum(0, keepdim=True) + part} for one in features]


def layer(seed: int) -> nn.Linear:
    """Return what is trained."""
    torch.manual_seed(seed)
    return nn.Linear(FEATURES, 1)


def say(words: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def names_of(callbacks: list[Any]) -> str:
    """Return the kinds of some callbacks."""
    return " ".join(type(one).__name__ for one in callbacks)


def lightning(part: int, says: str) -> None:
    """Train with Lightning."""
    import lightning as L  # noqa: N812, PLC0415 - one framework a process

    class Net(L.LightningModule):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.layer = layer(seed)

        def training_step(self, batch: Row) -> Tensor:
            return nn.functional.mse_loss(self.layer(batch["x"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trainer(**settings: Any) -> L.Trainer:
        return L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    settings: dict[str, Any] = {}
    if says == "callback":
        from flare_adapters.lightning import FLCallback  # noqa: PLC0415 - its point

        settings["callbacks"] = [FLCallback()]
    elif says == "strategy":
        from lightning.pytorch.strategies import SingleDeviceStrategy  # noqa: PLC0415

        from flare_adapters.lightning import FLStrategy  # noqa: PLC0415 - its point

        # "single_device" would be a GPU where there is one
        settings["strategy"] = FLStrategy(SingleDeviceStrategy("cpu"))
    first = trainer(**settings)
    if says == "late":
        from flare_adapters.lightning import FLCallback  # noqa: PLC0415 - its point

        first.callbacks.append(FLCallback())
    loader = DataLoader(rows(part), batch_size=8)
    first.fit(Net(0), loader)
    second = trainer()
    second.fit(Net(1), loader)
    say(f"epochs {first.current_epoch} {second.current_epoch}")
    say(f"callbacks {names_of(first.callbacks)}")


def huggingface(part: int, says: str) -> None:
    """Train with Hugging Face; before that, a Trainer only evaluates."""
    from transformers import Trainer, TrainingArguments  # noqa: PLC0415 - see above

    class Net(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.layer = layer(seed)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.layer(x)
            return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}

    def trainer(seed: int, **settings: Any) -> Trainer:
        arguments = TrainingArguments(
            num_train_epochs=2,
            per_device_train_batch_size=8,
            optim="sgd",
            learning_rate=0.1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        return Trainer(Net(seed), arguments, train_dataset=rows(part), **settings)

    trainer(2, eval_dataset=rows(part)).evaluate()
    settings: dict[str, Any] = {}
    if says == "callback":
        from flare_adapters.huggingface import FLCallback  # noqa: PLC0415 - its point

        settings["callbacks"] = [FLCallback()]
    first = trainer(0, **settings)
    if says == "late":
        from flare_adapters.huggingface import FLCallback  # noqa: PLC0415 - its point

        first.add_callback(FLCallback())
        first.args.num_train_epochs = 3  # what is added late finds the length as it is
    first.train()
    played = first.state.epoch
    second = first if says == "nothing" else trainer(1)
    second.train()
    say(f"epochs {played:g} {second.state.epoch:g}")
    say(f"callbacks {names_of(first.callback_handler.callbacks)}")


def main() -> None:
    """Train with the framework that is asked for."""
    framework, part, says = sys.argv[1:]
    torch.set_num_threads(1)
    {"lightning": lightning, "huggingface": huggingface}[framework](int(part), says)
    if dist.is_initialized():
        os._exit(0)  # else gloo may abort it, see ranks.py


if __name__ == "__main__":
    main()
