"""A site that trains on a GPU, with dropout; tests kill it and start it again.
    gpu_site.py lightning|gpt2|lora|ignite float32|bfloat16|float16 FOLDER
When it has saved the round that FOLDER/hold names, and nothing of it has left, it says
so and waits for good.  At its end it writes down in FOLDER/end.json what it has left.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adapters.gpu import GPU, digest

FEATURES = 4
VOCABULARY = 50


def rows() -> TensorDataset:
    """Return the data of the site."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(20, FEATURES, generator=generator)
    return TensorDataset(features, features.sum(1, keepdim=True))


def texts() -> list[dict[str, Tensor]]:
    """Return the data of a language model."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(0, VOCABULARY, (20, 8), generator=generator)
    return [{"input_ids": ids, "labels": ids.clone()} for ids in found]


def layers() -> nn.Module:
    """Return a network with dropout and BatchNorm."""
    torch.manual_seed(0)
    first, last = nn.Linear(FEATURES, 32), nn.Linear(32, 1)
    return nn.Sequential(first, nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.3), last)


def language_model(*, lora: bool) -> Any:
    """Return a GPT-2 of one layer, with dropout; perhaps with LoRA weights."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - if wanted
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - if wanted

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    sizes |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    if not lora:
        return model
    config = LoraConfig(
        r=2,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by an old name
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def module() -> Any:
    """Return the network as Lightning trains it."""
    import lightning as L  # noqa: N812, PLC0415 - if wanted

    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers()
            self.left = ""

        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.mse_loss(self.layers(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return Net()


def model_of(kind: str) -> Any:
    """Return what is trained."""
    if kind == "lightning":
        return module()
    return layers() if kind == "ignite" else language_model(lora=kind == "lora")


def scaler_of(half: str) -> Any:
    """Return a scaler whose scale changes all the time, where there is to be one."""
    if half != "float16":
        return None
    return torch.amp.GradScaler("cuda", init_scale=2.0**16, growth_interval=2)


def lightning(kind: str, half: str, folder: Path) -> Any:
    """Train with Lightning; return the model, the optimizer and the scaler."""
    import lightning as L  # noqa: N812, PLC0415 - one framework a process
    from lightning.pytorch.plugins import MixedPrecision  # noqa: PLC0415 - as above

    from flare_adapters.lightning import FLCallback  # noqa: PLC0415 - as above

    del folder
    scaler, net = scaler_of(half), model_of(kind)
    halves: dict[str, Any] = {
        "float32": {},
        "bfloat16": {"precision": "bf16-mixed"},
        "float16": {"plugins": MixedPrecision("16-mixed", "cuda", scaler)},
    }
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        callbacks=[FLCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **halves[half],
    )
    trainer.fit(net, DataLoader(rows(), batch_size=4, shuffle=True))
    return net, trainer.optimizers[0], scaler


def huggingface(kind: str, half: str, folder: Path) -> Any:
    """Train with the Hugging Face Trainer."""
    from transformers import Trainer, TrainingArguments  # noqa: PLC0415 - see above

    from flare_adapters.huggingface import FLCallback  # noqa: PLC0415 - see above

    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        report_to=[],
        learning_rate=0.02,
        per_device_train_batch_size=4,
        save_strategy="no",
        logging_steps=2,
        disable_tqdm=True,
        fp16=half == "float16",
        bf16=half == "bfloat16",
    )
    callbacks = [FLCallback()]
    trainer = Trainer(
        model_of(kind), arguments, train_dataset=texts(), callbacks=callbacks
    )
    scaler = trainer.accelerator.scaler
    if scaler is not None:
        scaler.set_growth_interval(2)
    trainer.train()
    return trainer.model, trainer.optimizer, scaler


def ignite(kind: str, half: str, folder: Path) -> Any:
    """Train with Ignite."""
    from ignite.engine import create_supervised_trainer  # noqa: PLC0415 - see above

    from flare_adapters.monai import FLHandler  # noqa: PLC0415 - see above

    del folder
    scaler, net = scaler_of(half), model_of(kind).to(GPU)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    engine = create_supervised_trainer(
        net,
        optimizer,
        nn.functional.mse_loss,
        device=GPU,
        amp_mode="amp" if scaler else None,
        scaler=scaler or False,
    )
    FLHandler(network=net, optimizer=optimizer).attach(engine)
    engine.run(DataLoader(rows(), batch_size=4, shuffle=True), max_epochs=1)
    return net, optimizer, scaler


TRAIN = {
    "lightning": lightning,
    "gpt2": huggingface,
    "lora": huggingface,
    "ignite": ignite,
}


def hold_when_saved(hold: Path) -> None:
    """Wait where a round is saved: its folder goes to the disk."""

    def opened(event: str, given: Any) -> None:
        path = Path(str(given[0])) if event == "open" else Path()
        if path.name.startswith("checkpoint-") and hold.exists():
            kept = json.loads((path / "round" / "round.json").read_text())
            if str(kept["round_number"]) == hold.read_text():
                sys.stdout.write("holds\n")
                sys.stdout.flush()
                sys.stdin.read()

    sys.addaudithook(opened)


def main() -> None:
    """Train, and write down what is left."""
    kind, half, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(7)
    hold_when_saved(folder / "hold")
    model, optimizer, scaler = TRAIN[kind](kind, half, folder)
    states = optimizer.state_dict()["state"].values()
    moments = [torch.as_tensor(one) for state in states for one in state.values()]
    left = {
        "weights": digest(model.state_dict().values()),
        "moments": digest(moments),
        "scaler": scaler.state_dict() if scaler else {},
        "random": digest([torch.cuda.get_rng_state(), torch.get_rng_state()]),
    }
    (folder / "end.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main()
