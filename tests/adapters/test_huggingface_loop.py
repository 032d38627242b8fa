"""How the callback fits into the Trainer's loop: lengths, evaluations, stops, steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from adapters.huggingface_runs import assert_same, left_by, records_of, run, untrained
from adapters.scripts.huggingface_site import LR, arguments, llama, rows
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._loop import innermost
from flare_core import (
    ConfigurationError,
    FedProx,
    HorizonError,
    Plan,
    Schedule,
)
from flare_core.application import SiteJoined, SiteLeft
from support import RunServer, SiteFile

EPOCHS = Schedule(every_n_epochs=1)
BATCHES = {"per_device_train_batch_size": 2}
"""Five optimizer steps an epoch."""


class Adam(TrainerCallback):
    """Notes how often Adam thinks it has stepped."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, *_: Any, optimizer: Any, **__: Any) -> None:
        state = innermost(optimizer).state.values()
        self.steps.append(next((int(one["step"]) for one in state), 0))


class StopAt(TrainerCallback):
    """Stops training, or the epoch, after so many steps."""

    def __init__(self, step: int, *, epoch_only: bool = False) -> None:
        self._step = step
        self._epoch_only = epoch_only

    def on_step_end(
        self, _: Any, state: TrainerState, control: TrainerControl, **__: Any
    ) -> None:
        if state.global_step == self._step:
            control.should_epoch_stop = self._epoch_only
            control.should_training_stop = not self._epoch_only


def evaluations(trainer: Trainer) -> list[int]:
    """Return the steps after which the model was evaluated."""
    return [one["step"] for one in trainer.state.log_history if "eval_loss" in one]


def test_nothing_set_up_is_an_error_at_once() -> None:
    with pytest.raises(ConfigurationError, match="FLARE_SITE is not set"):
        FLCallback()


def test_off_does_nothing(tmp_path: Path) -> None:
    settings = BATCHES | {"num_train_epochs": 2, "eval_strategy": "epoch"}

    plain = run("gpt2+dropout", tmp_path, **settings)
    off = run("gpt2+dropout", tmp_path, FLCallback("off", every_n_steps=3), **settings)

    assert_same(left_by(plain), left_by(off))


def test_the_plan_sets_the_length_and_the_script_is_told_of(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3, schedule=Schedule(every_n_steps=4)))

    trainer = run("llama", tmp_path, FLCallback(site_file("a", server.endpoint)))

    assert trainer.state.max_steps == trainer.state.global_step == 12
    joined = server.told(SiteJoined)[0]
    assert joined.horizon == "TrainingArguments(num_train_epochs=1, max_steps=-1)"


@pytest.mark.parametrize(
    ("schedule", "advice"),
    [(EPOCHS, "to 3 epochs"), (Schedule(every_n_steps=4), "to 12 steps")],
)
def test_added_late_it_says_how_long_to_train(
    schedule: Schedule,
    advice: str,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(Plan(rounds=3, schedule=schedule))
    trainer = untrained("llama", tmp_path, **BATCHES)
    trainer.add_callback(FLCallback(site_file("a", server.endpoint)))

    with pytest.raises(HorizonError, match=advice):
        trainer.train()

    assert "HorizonError" in server.result().error


def test_added_late_it_plays_if_the_training_is_long_enough(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3))
    trainer = untrained("llama", tmp_path, num_train_epochs=4, **BATCHES)
    trainer.add_callback(FLCallback(site_file("a", server.endpoint)))

    trainer.train()

    assert server.result().rounds == 3
    assert trainer.state.global_step == 15


@pytest.mark.parametrize(
    ("schedule", "strategy", "steps"),
    [
        (EPOCHS, "epoch", [0, 5, 10, 15]),
        (Schedule(every_n_steps=5), "epoch", [0, 5, 10, 15]),
        (Schedule(every_n_steps=4), "epoch", [0, 4, 5, 8, 10, 12]),
        (Schedule(every_n_steps=4), "steps", [0, 4, 8, 12]),
    ],
)
def test_each_model_is_evaluated_once(
    schedule: Schedule,
    strategy: str,
    steps: list[int],
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=3, schedule=schedule))
    settings = {"eval_strategy": strategy, "eval_steps": 100, "eval_on_start": True}
    file = site_file("a", server.endpoint)

    trainer = run("llama", file.parent, FLCallback(file), **BATCHES, **settings)

    assert evaluations(trainer) == steps
    losses = {
        one["step"]: one["eval_loss"]
        for one in trainer.state.log_history
        if "eval_loss" in one
    }
    length = schedule.every_n_steps or 5
    of_rounds = [record.global_metrics["eval_loss"] for record in records_of(server)]
    assert of_rounds == [losses[0], losses[length], losses[2 * length]]
    assert server.result().metrics == {"eval_loss": losses[3 * length]}


def test_metrics_of_several_evaluation_sets_come_together(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=1))
    Trainer(
        model=llama(seed=0),
        args=arguments(str(tmp_path), eval_strategy="epoch"),
        train_dataset=rows("llama", "b"),
        eval_dataset={"near": rows("llama", "a"), "far": rows("llama", "b")},
        callbacks=[FLCallback(site_file("a", server.endpoint))],
    ).train()

    assert server.result().metrics.keys() == {"eval_near_loss", "eval_far_loss"}


def test_nothing_is_evaluated_where_the_script_does_not(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=2))
    callback = FLCallback(site_file("a", server.endpoint))

    assert evaluations(run("llama", tmp_path, callback)) == []


def test_the_best_model_is_a_global_one(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3))
    settings = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    callback = FLCallback(site_file("a", server.endpoint))

    trainer = run("llama", tmp_path, callback, **BATCHES, **settings)

    best = trainer.evaluate()["eval_loss"]
    assert best == pytest.approx(trainer.state.best_metric)
    assert server.result().metrics["eval_loss"] > best


def test_early_stopping_tells_the_server(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=9))
    settings = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    callback = FLCallback(site_file("a", server.endpoint))

    run("llama", tmp_path, callback, EarlyStoppingCallback(1), **BATCHES, **settings)

    result = server.result()
    assert 0 < result.rounds < 9
    assert "was stopped at step" in result.error


def test_an_epoch_that_a_stop_cuts_off_is_no_round(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3))
    callback = FLCallback(site_file("a", server.endpoint))

    run("llama", tmp_path, callback, StopAt(7), **BATCHES)

    assert server.result().rounds == 1
    left = server.told(SiteLeft)[0]
    assert "at step 7 of 15" in left.reason
    assert "round 1" in left.reason


def test_an_epoch_cut_short_is_one(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3))
    callback = FLCallback(site_file("a", server.endpoint))

    run("llama", tmp_path, callback, StopAt(7, epoch_only=True), **BATCHES)

    counts = [record.num_examples for record in records_of(server)]
    assert counts == [70, 28, 70]
    steps = [record.sites["a"].num_steps for record in records_of(server)]
    assert steps == [5, 2, 5]


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (EPOCHS, [70, 28 + 70, 70]),
        (Schedule(every_n_steps=5), [70, 28 + 3 * 7, 5 * 7]),
    ],
)
def test_a_batch_that_does_not_fit_into_memory_costs_no_round(
    schedule: Schedule, counts: list[int], run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3, schedule=schedule))
    file = site_file("a", server.endpoint)
    trainer = untrained(
        "llama", file.parent, FLCallback(file), auto_find_batch_size=True, **BATCHES
    )
    passes = 0

    def overflow(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 8:  # the third step of round 1; from now on one row a batch
            msg = "CUDA out of memory."
            raise RuntimeError(msg)

    trainer.model.register_forward_pre_hook(overflow)
    trainer.train()

    assert [record.num_examples for record in records_of(server)] == counts
    assert server.result().rounds == 3


@pytest.mark.parametrize(
    ("state", "steps"),
    [("keep", [1, 2, 3, 4, 5, 6]), ("reset", [1, 2, 1, 2, 1, 2])],
)
def test_the_optimizer_keeps_its_state_or_not(
    state: Any,
    steps: list[int],
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(Plan(rounds=3, schedule=Schedule(every_n_steps=2)))
    adam = Adam()
    callback = FLCallback(site_file("a", server.endpoint), optimizer_state=state)

    run("llama", tmp_path, adam, callback, optim="adamw_torch")

    assert adam.steps == steps


def by_hand(mu: float, *, num_steps: int) -> dict[str, torch.Tensor]:
    """Return the Llama after steps of SGD with FedProx's term written out."""
    model = llama(seed=0)
    batch = {n: torch.stack([r[n] for r in rows("llama", "b")]) for n in ROW}
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    for _ in range(num_steps):
        model.zero_grad()
        model(**batch).loss.backward()
        with torch.no_grad():
            for name, one in model.named_parameters():
                one.sub_(LR * (one.grad + mu * (one - start[name])))
    return {name: one.detach() for name, one in model.named_parameters()}


ROW = ("input_ids", "attention_mask", "labels")


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_fedprox_pulls_as_by_hand(
    mu: float, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    plan = Plan(
        rounds=1,
        schedule=Schedule(every_n_steps=3),
        local=FedProx(mu=mu),
    )
    server = run_server(plan)

    trainer = run("llama", tmp_path, FLCallback(site_file("a", server.endpoint)))

    trained = trainer.model.state_dict()
    expected, plain = by_hand(mu, num_steps=3), by_hand(0.0, num_steps=3)
    away = max(float((trained[n] - expected[n]).abs().max()) for n in expected)
    assert away < 1e-6
    pulled = max(float((trained[n] - plain[n]).abs().max()) for n in plain)
    assert (pulled > 1e-3) == (mu > 0)


def test_no_hook_stays_behind(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=0.1)))

    trainer = run("llama", tmp_path, FLCallback(site_file("a", server.endpoint)))

    assert not trainer.model._forward_hooks
    assert not innermost(trainer.optimizer)._optimizer_step_pre_hooks


def test_a_second_training_is_a_run_of_its_own(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    first = run_server(Plan(rounds=1))
    trainer = run("llama", tmp_path, FLCallback(site_file("a", first.endpoint)))
    second = run_server(Plan(rounds=1))
    site_file("a", second.endpoint)

    trainer.train()

    assert first.result().rounds == second.result().rounds == 1


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("auto", lambda name: "lora" in name),
        ("trainable", lambda name: "lora" in name),
        (["*lora_A*"], lambda name: "lora_A" in name),
        (["*lora*", "!*q_proj*"], lambda name: "lora" in name and "q_proj" not in name),
        ("all", lambda _: True),
    ],
)
def test_select_says_what_travels(
    select: Any,
    expected: Callable[[str], bool],
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(Plan(rounds=1))
    callback = FLCallback(site_file("a", server.endpoint), select=select)

    run("lora", tmp_path, callback)

    joined = server.told(SiteJoined)[0]
    names = {spec.name for spec in joined.layout.tensors}
    stays = {spec.name.replace(".default", "") for spec in joined.stays}
    assert names == {name for name in names | stays if expected(name)}
