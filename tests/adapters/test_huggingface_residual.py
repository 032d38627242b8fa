"""What sites keep of the global LoRA ranks beside their own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer

from adapters.huggingface_runs import records_of
from adapters.lora_sites import (
    TASK,
    Matrix,
    adapted,
    federate,
    learn,
    plan_of,
    play,
    rest,
)
from adapters.scripts.huggingface_site import arguments, llama, rows
from adapters.test_huggingface_peft import logits, train
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._pairs import lora_pairs
from flare_adapters.huggingface._peft import RESIDUAL
from flare_adapters.huggingface._residual import add_residual
from flare_core import ConfigurationError, Lora, Schedule, UnsupportedError
from flare_core._lora import Residual
from support import RunServer, SiteFile

# peft 0.21 asks transformers 5 by an old name, and warns of adapters it makes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]
_WHOLE = 16
"""The rank that no matrix of the model exceeds."""


def _lora(residual: Residual, *, rank: int = _WHOLE) -> Lora:
    return Lora(aggregate="product", rank=rank, residual=residual)


def _weights(model: Any) -> list[Matrix]:
    """Return the weights that modules work with: the base's, and what is added."""
    with torch.no_grad():
        return [
            sum(
                (layer.get_delta_weight(one) for one in layer.active_adapters),
                layer.get_base_layer().weight,
            )
            .double()
            .numpy()
            for path, layer in model.named_modules()
            if path.endswith(("q_proj", "v_proj"))
        ]


def _stack(residual: Residual) -> Lora:
    return Lora(aggregate="stack", rank=_WHOLE + 8, fresh=8, residual=residual)


@pytest.mark.parametrize(
    "lora", [_lora("adapter"), _lora("fold"), _stack("adapter"), _stack("fold")]
)
def test_sites_of_small_ranks_have_the_whole_mean_of_all_rounds(
    lora: Lora, run_server: RunServer, site_file: SiteFile
) -> None:
    models = [
        adapted(number, r=r, lora_alpha=alpha)
        for number, (r, alpha) in enumerate(((2, 8), (4, 4), (8, 4), (4, 16)))
    ]

    server, seen = federate(
        models,
        plan_of(4, lora, rounds=3),
        run_server,
        site_file,
        measure=_weights,
    )

    for module in range(2):
        wanted = np.mean([learnt[-1][module] for learnt in seen], axis=0)
        for model in models:
            np.testing.assert_allclose(_weights(model)[module], wanted, atol=1e-6)
    for record in records_of(server):
        assert record.lora is not None
        assert record.lora.error < 1e-6


def test_where_products_are_stacked_a_round_begins_with_a_b_of_0(
    run_server: RunServer, site_file: SiteFile
) -> None:
    models = [adapted(0, r=4), adapted(1, r=8)]
    left: dict[int, list[torch.Tensor]] = {}

    def noted(model: Any, seed: int) -> None:
        pairs = lora_pairs(model)
        assert not any(model.get_parameter(pair.b).any() for pair in pairs)
        a = [model.get_parameter(pair.a) for pair in pairs]
        assert all(map(torch.equal, a, left.get(seed, a)))  # as it was trained
        learn(model, seed)
        left[seed] = [one.detach().clone() for one in a]

    plan = plan_of(2, _stack("adapter"), rounds=3)
    federate(models, plan, run_server, site_file, learn=noted)

    assert len(left) == 2


def test_a_rank_above_what_is_fresh_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan_of(1, _stack("adapter")))

    with pytest.raises(ConfigurationError, match=r"have rank 9: .*at most lora\.f"):
        play(site_file("a", server.endpoint), adapted(0, r=9), rest, [])


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"rank_pattern": {"q_proj": 7}, "use_rslora": True},
    ],
    ids=["head", "embeddings", "ranks"],
)
@pytest.mark.parametrize(
    ("residual", "by"),
    [("adapter", "peft"), ("fold", "peft"), ("fold", "transformers")],
)
def test_a_model_is_what_it_was_until_something_is_kept(
    residual: Residual, by: str, settings: dict[str, Any]
) -> None:
    config = LoraConfig(**{**TASK, "r": 4, "init_lora_weights": False, **settings})
    model = llama(seed=42)
    if by == "peft":
        model = get_peft_model(model, config)
    else:
        model.add_adapter(config)
    before, trained = logits(model), _trained(model)

    add_residual(model, _lora(residual))

    assert torch.equal(logits(model), before)
    assert _trained(model) == trained


def _trained(model: Any) -> list[str]:
    return [name for name, one in model.named_parameters() if one.requires_grad]


def test_what_even_the_global_rank_cannot_hold_is_recorded(
    run_server: RunServer, site_file: SiteFile
) -> None:
    models = [adapted(number, r=4) for number in range(4)]
    lora = _lora("adapter", rank=8)

    server, seen = federate(
        models, plan_of(4, lora), run_server, site_file, measure=_weights
    )

    wanted = np.mean([learnt[0] for learnt in seen], axis=0)
    base = [layer.weight.detach().double().numpy() for layer in _projections()]
    lost = np.sqrt(np.sum((np.array(_weights(models[0])) - wanted) ** 2))
    changed = np.sqrt(np.sum((wanted - np.array(base)) ** 2))
    (record,) = records_of(server)
    assert record.lora is not None
    assert record.lora.error > 0.1
    np.testing.assert_allclose(lost / changed, record.lora.error, rtol=1e-4)


def _projections() -> list[Any]:
    attention = llama(seed=42).model.layers[0].self_attn
    return [attention.q_proj, attention.v_proj]


def test_the_kept_ranks_are_an_adapter_that_peft_saves_and_opens(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    model, other = adapted(0, r=2), adapted(1, r=8)
    add_residual(other, _lora("adapter"))
    before = torch.get_rng_state()
    add_residual(model, _lora("adapter"))
    assert torch.equal(torch.get_rng_state(), before)  # training goes on with it

    _play_both(
        model,
        other,
        residual="adapter",
        run_server=run_server,
        site_file=site_file,
        folder=tmp_path,
    )

    assert not any(RESIDUAL in name for name in _trained(model))
    found = logits(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(llama(seed=42), tmp_path)
    assert not torch.allclose(logits(again), found, atol=1e-3)
    again.load_adapter(str(tmp_path / RESIDUAL), RESIDUAL)
    again.base_model.set_adapter(["default", RESIDUAL])
    assert torch.equal(logits(again), found)
    assert torch.allclose(logits(again.merge_and_unload()), found, atol=1e-5)


@pytest.mark.parametrize("in_transformers", [False, True])
def test_what_was_folded_stays_in_the_base(
    *,
    in_transformers: bool,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    make = _in_transformers if in_transformers else adapted
    model, other = make(0, r=2), make(1, r=8)

    _play_both(
        model,
        other,
        residual="fold",
        run_server=run_server,
        site_file=site_file,
        folder=tmp_path,
    )

    assert list(model.peft_config) == ["default"]
    found = logits(model)
    assert torch.allclose(found, logits(other), atol=1e-5)
    if not in_transformers:
        assert torch.allclose(logits(model.merge_and_unload()), found, atol=1e-5)


def _in_transformers(seed: int = 0, *, r: int = 2) -> Any:
    model = llama(seed=42)
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(r=r, **TASK))
    return model


def _play_both(
    model: Any,
    other: Any,
    *,
    residual: Residual,
    run_server: RunServer,
    site_file: SiteFile,
    folder: Path,
) -> None:
    """Train a model by the Trainer for two rounds, beside another one."""
    steps = Schedule(every_n_steps=1)
    server = run_server(plan_of(2, _lora(residual), rounds=2, schedule=steps))
    with ThreadPoolExecutor(1) as pool:
        file = site_file("other", server.endpoint)
        playing = pool.submit(play, file, other, partial(learn, seed=1), [], _weights)
        train(model, folder, site_file("a", server.endpoint))
        playing.result()


def _of(base: Any) -> Any:
    return get_peft_model(base, LoraConfig(r=4, **TASK))


def _rounded() -> Any:
    return _of(llama(seed=42).bfloat16())


def _tied() -> Any:
    base = llama(seed=42)
    attention = base.model.layers[0].self_attn
    attention.v_proj.weight = attention.q_proj.weight
    return _of(base)


def _of_two() -> Any:
    model = adapted(0)
    model.add_adapter("second", LoraConfig(r=2, **TASK))
    model.base_model.set_adapter(["default", "second"])
    return model


@pytest.mark.parametrize(
    ("residual", "make", "what"),
    [
        ("adapter", partial(adapted, 0, use_dora=True), r"q_proj.*DoRA"),
        ("adapter", _of_two, "several adapters"),
        ("adapter", _in_transformers, "saves no model with two active adapters"),
        ("fold", _rounded, r"q_proj.*bfloat16"),
        ("fold", _tied, "q_proj.*another module has the same weights"),
    ],
)
def test_a_base_that_cannot_have_it_is_refused_by_name(
    residual: Residual,
    make: Callable[[], Any],
    what: str,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(plan_of(1, _lora(residual)))

    with pytest.raises(UnsupportedError, match=what):
        play(site_file("a", server.endpoint), make(), rest, [])


def test_the_best_model_of_the_trainer_would_lack_it(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(plan_of(1, _lora("adapter")))
    often = {"eval_strategy": "epoch", "save_strategy": "epoch"}

    with pytest.raises(UnsupportedError, match=r"load_best_model_at_end=True\) loads"):
        Trainer(
            model=adapted(0),
            args=arguments(str(tmp_path), load_best_model_at_end=True, **often),
            eval_dataset=rows("lora", "a"),
            callbacks=[FLCallback(site_file("a", server.endpoint))],
        )


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"rank": None}, "expected lora.rank, and lora.aggregate"),
        ({"aggregate": "auto"}, "expected lora.rank, and lora.aggregate"),
        ({"aggregate": "pad"}, "expected lora.rank, and lora.aggregate"),
        ({"aggregate": "stack"}, "'stack' and None"),
        ({"fresh": 4}, "'product' and 4"),
        ({"aggregate": "stack", "fresh": 8}, "above lora.fresh = 8, got 'fold' and 8"),
        (
            {"aggregate": "stack", "fresh": 4, "residual": "drop"},
            "above lora.fresh = 4, got 'drop' and 8",
        ),
    ],
)
def test_what_a_plan_says_of_it_must_go_together(
    settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        Lora(**{"aggregate": "product", "rank": 8, "residual": "fold", **settings})
