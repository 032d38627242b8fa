"""LoRA at several sites: unequal ranks, factors trained in turns or kept apart."""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer

from adapters.huggingface_runs import records_of
from adapters.lora_sites import (
    TASK,
    Matrix,
    adapted,
    changes,
    federate,
    learn,
    plan_of,
    play,
    rest,
)
from adapters.scripts.huggingface_site import arguments, llama, rows
from adapters.test_huggingface_peft import logits, published
from flare_adapters._torch import LocalSession, options
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._pairs import lora_pairs
from flare_core import (
    ConfigurationError,
    LayoutError,
    Lora,
    UnsupportedError,
)
from support import RunServer, SiteFile

# peft 0.21 asks transformers 5 by an old name, and warns of adapters it makes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]


def _of_rank(matrix: Matrix, rank: int) -> Matrix:
    u, values, v = np.linalg.svd(matrix)
    return np.asarray((u[:, :rank] * values[:rank]) @ v[:rank])


def test_sites_of_unequal_ranks_and_scales_get_the_best_of_their_own(
    run_server: RunServer, site_file: SiteFile
) -> None:
    ranks, alphas = (2, 4, 8, 4), (8, 4, 4, 16)
    models = [
        adapted(number, r=r, lora_alpha=alpha)
        for number, (r, alpha) in enumerate(zip(ranks, alphas, strict=True))
    ]

    server, seen = federate(models, plan_of(4, Lora(rank=8)), run_server, site_file)

    for module in range(2):
        wanted = np.mean([learnt[0][module] for learnt in seen], axis=0)
        for model, rank in zip(models, ranks, strict=True):
            expected = _of_rank(wanted, rank)
            np.testing.assert_allclose(changes(model)[module], expected, atol=1e-7)
    whole = _loaded(published(server)[-1], LoraConfig(r=8, lora_alpha=8, **TASK))
    np.testing.assert_allclose(logits(whole), logits(models[2]), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
def test_biases_of_b_are_averaged_as_large_as_they_are_where_they_are_used(
    run_server: RunServer, site_file: SiteFile
) -> None:
    models = [
        adapted(seed, r=r, lora_alpha=alpha, lora_bias=True)
        for seed, (r, alpha) in enumerate(((2, 8), (4, 4)))
    ]
    before = list[list[Matrix]]()

    def noted(model: Any, seed: int) -> None:
        learn(model, seed)
        before.append(_biases(model))

    federate(models, plan_of(2, Lora(rank=4)), run_server, site_file, learn=noted)

    wanted = np.mean(before, axis=0)
    for model in models:
        np.testing.assert_allclose(_biases(model), wanted, atol=1e-7)


def _biases(model: Any) -> list[Matrix]:
    """Return what the biases of B add to each module: PEFT scales them, too."""
    return [
        layer.lora_B["default"].bias.detach().double().numpy()
        * layer.scaling["default"]
        for path, layer in model.named_modules()
        if path.endswith(("q_proj", "v_proj"))
    ]


def _loaded(weights: Mapping[str, Tensor], config: LoraConfig) -> Any:
    """Return what PEFT makes of a global model."""
    model = get_peft_model(llama(seed=42), config)
    missing = model.load_state_dict(
        {
            name.replace(".weight", ".default.weight"): one
            for name, one in weights.items()
        },
        strict=False,
    )
    assert not missing.unexpected_keys
    return model


def test_ranks_that_only_some_sites_have_can_be_learnt(
    run_server: RunServer, site_file: SiteFile
) -> None:
    small, large = adapted(0, r=2), adapted(1, r=6)

    server = run_server(plan_of(2, Lora(rank=6)))
    with ThreadPoolExecutor(2) as pool:
        sites = [
            pool.submit(play, site_file(name, server.endpoint), model, rest, [])
            for name, model in (("a", small), ("b", large))
        ]
        for site in sites:
            site.result()

    for pair in lora_pairs(large):
        a, b = large.get_parameter(pair.a), large.get_parameter(pair.b)
        assert not b.any()
        assert torch.linalg.matrix_rank(a) == 6


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"r": 1}, r"q_proj\.lora_A\.weight.*\(8, 16\).*\(1, 16\)"),
        ({"lora_alpha": 3}, r"scale of the LoRA weights .*q_proj\.lora_B"),
        ({"use_rslora": True}, r"scale of the LoRA weights .*q_proj\.lora_B"),
        ({"alpha_pattern": {"q_proj": 5}}, r"q_proj\.lora_B"),
        ({"rank_pattern": {"q_proj": 5}}, r"q_proj\.lora_A\.weight"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_weights_that_mean_something_else_are_refused_by_name(
    settings: dict[str, Any], what: str, run_server: RunServer, site_file: SiteFile
) -> None:
    models = [adapted(0, r=8), adapted(1, **{"r": 8, **settings})]
    server = run_server(plan_of(2, Lora()))

    with ThreadPoolExecutor(2) as pool:
        first, second = (
            pool.submit(
                play,
                site_file(f"site-{number}", server.endpoint),
                model,
                partial(learn, seed=number),
                [],
            )
            for number, model in enumerate(models)
        )
        with pytest.raises(LayoutError, match=what):
            second.result()
        assert first.exception() is not None


def test_a_rank_above_that_of_the_plan_is_refused_at_the_site(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan_of(1, Lora(rank=4)))

    with pytest.raises(ConfigurationError, match=r"have rank 8: expected at most lora"):
        play(site_file("a", server.endpoint), adapted(0, r=8), rest, [])


@pytest.mark.parametrize("aggregate", ["freeze_a", "alternate", "fedsvd"])
def test_averages_are_exact_where_sites_share_a_factor(
    aggregate: Any, run_server: RunServer, site_file: SiteFile
) -> None:
    models = [adapted(number) for number in range(3)]

    server, seen = federate(
        models, plan_of(3, Lora(aggregate=aggregate), rounds=3), run_server, site_file
    )

    for record in records_of(server):
        assert record.lora is not None
        assert record.lora.error < 1e-12
    for model in models:
        for module, change in enumerate(changes(model)):
            wanted = np.mean([learnt[-1][module] for learnt in seen], axis=0)
            np.testing.assert_allclose(change, wanted, atol=1e-6)


def test_b_and_a_are_trained_in_turn(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(plan_of(1, Lora(aggregate="alternate"), rounds=3))

    model = adapted(0)
    _train(model, tmp_path, site_file("a", server.endpoint))

    assert _moved(published(server)) == ["B", "A", "B"]
    for pair in lora_pairs(model):
        assert model.get_parameter(pair.a).requires_grad
        assert model.get_parameter(pair.b).requires_grad


@pytest.mark.parametrize("aggregate", ["freeze_a", "fedsvd"])
def test_a_stays_as_it_was_at_the_sites(
    aggregate: Any, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(plan_of(1, Lora(aggregate=aggregate), rounds=2))

    model = adapted(0)
    _train(model, tmp_path, site_file("a", server.endpoint))

    models = published(server)
    if aggregate == "freeze_a":
        assert _moved(models) == ["B", "B"]
    else:
        for weights in models[1:]:
            for name, one in weights.items():
                if "lora_A" in name:
                    torch.testing.assert_close(one @ one.T, torch.eye(4))


def _moved(models: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Return which factors changed from each global model to the next."""
    return [
        "".join(
            side
            for side in "AB"
            if any(
                not torch.equal(before[name], after[name])
                for name in before
                if f"lora_{side}" in name
            )
        )
        for before, after in itertools.pairwise(models)
    ]


def test_b_stays_at_its_site_where_only_a_is_shared(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    models = [adapted(number) for number in range(2)]

    server, _ = federate(
        models, plan_of(2, Lora(aggregate="share_a"), rounds=2), run_server, site_file
    )

    assert {name.split(".")[-2] for name in published(server)[-1]} == {"lora_A"}
    for pair in lora_pairs(models[0]):
        one, other = (model.get_parameter(pair.a) for model in models)
        assert torch.equal(one, other)
        one, other = (model.get_parameter(pair.b) for model in models)
        assert not torch.equal(one, other)
    models[1].save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(llama(seed=42), tmp_path)
    assert torch.equal(logits(again), logits(models[1]))


def test_the_trainer_trains_sites_of_another_rank(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(plan_of(1, Lora(rank=8), rounds=2))
    model = adapted(0, r=4)

    _train(model, tmp_path, site_file("a", server.endpoint))

    whole = _loaded(published(server)[-1], LoraConfig(r=8, lora_alpha=8, **TASK))
    np.testing.assert_allclose(logits(whole), logits(model), atol=1e-5)
    assert records_of(server)[-1].lora


def test_adapters_of_other_frameworks_say_that_they_cannot(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(plan_of(1, Lora(aggregate="freeze_a")))
    file = site_file("a", server.endpoint)
    session = LocalSession(options(file, 1, None, "auto", "keep"))

    with pytest.raises(UnsupportedError, match=r"only flare_adapters\.huggingface"):
        session.join(adapted(0), playable=100, horizon="")


def _train(model: Any, folder: Path, file: Path) -> None:
    Trainer(
        model=model,
        args=arguments(str(folder)),
        train_dataset=rows("lora", "b"),
        callbacks=[FLCallback(file)],
    ).train()
