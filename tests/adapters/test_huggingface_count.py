"""The weight of an update is what the loss is a mean over."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from adapters.huggingface_runs import records_of, run
from adapters.scripts.huggingface_site import (
    KINDS,
    LENGTH,
    VOCABULARY,
    Row,
    arguments,
    llama,
    rows,
)
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._count import Tally
from flare_core import Plan
from flare_core.application import RoundRecord
from support import RunServer, SiteFile

NUM_TARGETS = 10 * 7
"""Of the ten rows; their first token, which has no target, is not among them."""
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
"""What transformers calls it: the first name is the newer one."""
LABELS_EVERYWHERE = [row | {"labels": row["input_ids"]} for row in rows("llama", "b")]


class Custom(nn.Module):
    """A model that is none of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LENGTH, 1)

    def forward(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"loss": self.layer(input_ids.float()).square().mean()}


def own(model: Any) -> Any:
    """Let a model divide its loss by itself, batch by batch."""
    model.accepts_loss_kwargs = False
    return model


def t5(*, seed: int) -> Any:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def masked(*, seed: int) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return BertForMaskedLM(config)


def custom(*, seed: int) -> Any:
    torch.manual_seed(seed)
    return Custom()


@pytest.fixture
def played(run_server: RunServer, site_file: SiteFile) -> Any:
    """Train a round at one site and return its record."""

    def play(model: Any, data: list[Row], **settings: Any) -> RoundRecord:
        server = run_server(Plan(rounds=1))
        file = site_file("a", server.endpoint)
        loss = settings.pop("compute_loss_func", None)
        Trainer(
            model=model,
            args=arguments(str(file.parent), **settings),
            train_dataset=data,
            compute_loss_func=loss,
            callbacks=[FLCallback(file)],
        ).train()
        (record,) = records_of(server)
        return record

    return play


def cross_entropy(
    output: Any, labels: Tensor, num_items_in_batch: Tensor | None = None
) -> Tensor:
    loss = nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    return loss / (1 if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize(
    ("make", "data", "expected"),
    [
        (KINDS["bert"], rows("bert", "b"), 10),
        (KINDS["llama"], rows("llama", "b"), NUM_TARGETS),
        (KINDS["llama"], LABELS_EVERYWHERE, 10 * (LENGTH - 1)),
        (KINDS["lora"], LABELS_EVERYWHERE, 10 * (LENGTH - 1)),
        (lambda seed: own(llama(seed=seed)), LABELS_EVERYWHERE, 10 * (LENGTH - 1)),
        (lambda seed: own(t5(seed=seed)), LABELS_EVERYWHERE, 10 * LENGTH),
        (t5, LABELS_EVERYWHERE, 10 * LENGTH),
        (masked, rows("llama", "b"), NUM_TARGETS),
        (custom, rows("llama", "b"), 10),
    ],
    ids=[
        "rows",
        "targets",
        "next",
        "peft",
        "own",
        "own seq2seq",
        "seq2seq",
        "masked",
        "custom",
    ],
)
def test_examples_are_what_the_loss_is_a_mean_over(
    make: Any, data: list[Row], expected: int, played: Any
) -> None:
    record = played(make(seed=0), data, per_device_train_batch_size=4)

    assert record.num_examples == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"label_smoothing_factor": 0.1},
        {"compute_loss_func": cross_entropy},
        {CHECKPOINTING: True},
        {"bf16": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_targets_are_counted_whatever_the_trainer_does(
    settings: dict[str, Any], played: Any
) -> None:
    record = played(llama(seed=0), rows("llama", "b"), **settings)

    assert record.num_examples == NUM_TARGETS


def test_evaluations_do_not_count(run_server: RunServer, site_file: SiteFile) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}

    run("bert", file.parent, FLCallback(file), **settings)

    assert [record.num_examples for record in records_of(server)] == [10, 10]


def test_hidden_labels_are_replaced_by_input_tokens_and_it_says_so_once(
    played: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flare_adapters"):
        record = played(
            own(llama(seed=0)),
            rows("llama", "b"),
            label_smoothing_factor=0.1,
            per_device_train_batch_size=2,
        )

    assert record.num_examples == 10 * LENGTH
    said = [one for one in caplog.messages if "weigh by input tokens" in one]
    assert len(said) == 1


def test_hidden_labels_of_a_model_without_tokens_leave_its_rows(
    tmp_path: Path,
) -> None:
    tally = Tally(arguments(str(tmp_path)), own(llama(seed=0)))
    module = nn.Module().train()
    loss = torch.tensor(2.0, requires_grad=True)

    tally.see(module, (), {"inputs_embeds": torch.zeros(3, 5, 16)}, {"loss": loss})

    assert tally.take() == (3, 2.0)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("divided", [False, True])
def test_a_step_reads_nothing_that_a_gpu_may_still_be_computing(
    hidden: bool,  # noqa: FBT001 - a parameter of the test
    divided: bool,  # noqa: FBT001 - as above
    tmp_path: Path,
) -> None:
    tally = Tally(arguments(str(tmp_path)), own(llama(seed=0)))
    module = nn.Module().train()

    with FakeTensorMode():  # these have no values: to read one raises
        rows = torch.ones(3, 5, dtype=torch.int64)
        inputs = {"attention_mask" if hidden else "labels": rows}
        if divided:
            inputs["num_items_in_batch"] = rows.sum()
        tally.see(module, (), inputs, {"loss": torch.ones((), requires_grad=True)})
        num_examples, loss = tally.take()

    assert isinstance(num_examples, Tensor)
    assert num_examples.dtype == torch.int64
    assert isinstance(loss, Tensor)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("llama", KINDS["llama"]),
        ("bert", KINDS["bert"]),
        ("llama", lambda seed: own(llama(seed=seed))),
    ],
    ids=["tokens", "rows", "own"],
)
def test_the_loss_of_a_round_is_the_one_that_the_trainer_logs(
    kind: str, make: Any, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    file = site_file("a", server.endpoint)
    trainer = Trainer(
        model=make(seed=0),
        args=arguments(
            str(file.parent),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        ),
        train_dataset=rows(kind, "b"),
        callbacks=[FLCallback(file)],
    )

    trainer.train()

    (record,) = records_of(server)
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    assert record.metrics["loss"] == pytest.approx(sum(losses) / len(losses))
