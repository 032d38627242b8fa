"""LoRA at several sites: unequal ranks, factors trained in turns or kept apart."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer

from adapters.huggingface_runs import records_of
from adapters.scripts.huggingface_site import arguments, llama, rows
from adapters.test_huggingface_peft import logits, published
from flare_adapters._torch import LocalSession, options
from flare_adapters.huggingface import FLCallback
from flare_adapters.huggingface._lora import lora_pairs, train_by_turns, wire_of
from flare_core import (
    ConfigurationError,
    LayoutError,
    Lora,
    Plan,
    Selection,
    UnsupportedError,
)
from support import RunServer, SiteFile

# peft 0.21 asks transformers 5 by an old name, and warns of adapters it makes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]
_Matrix = npt.NDArray[np.float64]
_TASK: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "v_proj"],
}


def _adapted(seed: int, *, r: int = 4, **settings: Any) -> Any:
    base = llama(seed=42)
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(r=r, **_TASK, **settings))


def _changes(model: Any) -> list[_Matrix]:
    """Return what the LoRA weights add to each module, as PEFT computes it."""
    return [
        layer.get_delta_weight("default").detach().double().numpy()
        for path, layer in model.named_modules()
        if path.endswith(("q_proj", "v_proj"))
    ]


@torch.no_grad()
def _learn(model: Any, seed: int) -> None:
    """Change what is trained, in any direction."""
    random = torch.Generator().manual_seed(seed)
    for one in model.parameters():
        if one.requires_grad:
            one.add_(torch.randn(one.shape, generator=random) * 0.1)


def _rest(model: Any) -> None:
    """Learn nothing."""
    del model


class _Learn(Protocol):
    """Trains a model as the site of a seed."""

    def __call__(self, model: Any, seed: int) -> None: ...


def _play(
    file: Path, model: Any, learn: Callable[[Any], None], seen: list[list[_Matrix]]
) -> None:
    """Play a run without a Trainer; note what was learnt before each exchange."""
    session = LocalSession(options(file, None, 1, "auto", "keep"))
    lora = session.plan.lora
    session.join(model, playable=100, horizon="", wire=wire_of(model, lora))
    while not session.final:
        train_by_turns(model, lora, session.round_number)
        learn(model)
        seen.append(_changes(model))
        session.saw(1)
        session.exchange()
    session.leave("the test is over")


def _federate(
    models: Sequence[Any],
    plan: Plan,
    run_server: RunServer,
    site_file: SiteFile,
    *,
    learn: _Learn = _learn,
) -> tuple[Any, list[list[list[_Matrix]]]]:
    """Play a run of these models; return the server, and what each learned."""
    server = run_server(plan)
    seen: list[list[list[_Matrix]]] = [[] for _ in models]
    with ThreadPoolExecutor(len(models)) as pool:
        sites = [
            pool.submit(
                _play,
                site_file(f"site-{number}", server.endpoint),
                model,
                partial(learn, seed=number),
                seen[number],
            )
            for number, model in enumerate(models)
        ]
        for site in sites:
            site.result()
    return server, seen


def _of_rank(matrix: _Matrix, rank: int) -> _Matrix:
    u, values, v = np.linalg.svd(matrix)
    return np.asarray((u[:, :rank] * values[:rank]) @ v[:rank])


def _plan(num_sites: int, lora: Lora, *, rounds: int = 1) -> Plan:
    return Plan(rounds=rounds, selection=Selection(sites=num_sites), lora=lora)


def test_sites_of_unequal_ranks_and_scales_get_the_best_of_their_own(
    run_server: RunServer, site_file: SiteFile
) -> None:
    ranks, alphas = (2, 4, 8, 4), (8, 4, 4, 16)
    models = [
        _adapted(number, r=r, lora_alpha=alpha)
        for number, (r, alpha) in enumerate(zip(ranks, alphas, strict=True))
    ]

    server, seen = _federate(models, _plan(4, Lora(rank=8)), run_server, site_file)

    for module in range(2):
        wanted = np.mean([learnt[0][module] for learnt in seen], axis=0)
        for model, rank in zip(models, ranks, strict=True):
            expected = _of_rank(wanted, rank)
            np.testing.assert_allclose(_changes(model)[module], expected, atol=1e-7)
    whole = _loaded(published(server)[-1], LoraConfig(r=8, lora_alpha=8, **_TASK))
    np.testing.assert_allclose(logits(whole), logits(models[2]), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
def test_biases_of_b_are_averaged_as_large_as_they_are_where_they_are_used(
    run_server: RunServer, site_file: SiteFile
) -> None:
    models = [
        _adapted(seed, r=r, lora_alpha=alpha, lora_bias=True)
        for seed, (r, alpha) in enumerate(((2, 8), (4, 4)))
    ]
    before = list[list[_Matrix]]()

    def learn(model: Any, seed: int) -> None:
        _learn(model, seed)
        before.append(_biases(model))

    _federate(models, _plan(2, Lora(rank=4)), run_server, site_file, learn=learn)

    wanted = np.mean(before, axis=0)
    for model in models:
        np.testing.assert_allclose(_biases(model), wanted, atol=1e-7)


def _biases(model: Any) -> list[_Matrix]:
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
    small, large = _adapted(0, r=2), _adapted(1, r=6)

    server = run_server(_plan(2, Lora(rank=6)))
    with ThreadPoolExecutor(2) as pool:
        sites = [
            pool.submit(_play, site_file(name, server.endpoint), model, _rest, [])
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
    models = [_adapted(0, r=8), _adapted(1, **{"r": 8, **settings})]
    server = run_server(_plan(2, Lora()))

    with ThreadPoolExecutor(2) as pool:
        first, second = (
            pool.submit(
                _play,
                site_file(f"site-{number}", server.endpoint),
                model,
                partial(_learn, seed=number),
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
    server = run_server(_plan(1, Lora(rank=4)))

    with pytest.raises(ConfigurationError, match=r"have rank 8: expected at most lora"):
        _play(site_file("a", server.endpoint), _adapted(0, r=8), _rest, [])


@pytest.mark.parametrize("aggregate", ["freeze_a", "alternate", "fedsvd"])
def test_averages_are_exact_where_sites_share_a_factor(
    aggregate: Any, run_server: RunServer, site_file: SiteFile
) -> None:
    models = [_adapted(number) for number in range(3)]

    server, seen = _federate(
        models, _plan(3, Lora(aggregate=aggregate), rounds=3), run_server, site_file
    )

    for record in records_of(server):
        assert record.lora is not None
        assert record.lora.error < 1e-12
    for model in models:
        for module, change in enumerate(_changes(model)):
            wanted = np.mean([learnt[-1][module] for learnt in seen], axis=0)
            np.testing.assert_allclose(change, wanted, atol=1e-6)


def test_b_and_a_are_trained_in_turn(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(_plan(1, Lora(aggregate="alternate"), rounds=3))

    model = _adapted(0)
    _train(model, tmp_path, site_file("a", server.endpoint))

    assert _moved(published(server)) == ["B", "A", "B"]
    for pair in lora_pairs(model):
        assert model.get_parameter(pair.a).requires_grad
        assert model.get_parameter(pair.b).requires_grad


@pytest.mark.parametrize("aggregate", ["freeze_a", "fedsvd"])
def test_a_stays_as_it_was_at_the_sites(
    aggregate: Any, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(_plan(1, Lora(aggregate=aggregate), rounds=2))

    model = _adapted(0)
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
    models = [_adapted(number) for number in range(2)]

    server, _ = _federate(
        models, _plan(2, Lora(aggregate="share_a"), rounds=2), run_server, site_file
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
    server = run_server(_plan(1, Lora(rank=8), rounds=2))
    model = _adapted(0, r=4)

    _train(model, tmp_path, site_file("a", server.endpoint))

    whole = _loaded(published(server)[-1], LoraConfig(r=8, lora_alpha=8, **_TASK))
    np.testing.assert_allclose(logits(whole), logits(model), atol=1e-5)
    assert records_of(server)[-1].lora


def test_adapters_of_other_frameworks_say_that_they_cannot(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(_plan(1, Lora(aggregate="freeze_a")))
    file = site_file("a", server.endpoint)
    session = LocalSession(options(file, 1, None, "auto", "keep"))

    with pytest.raises(UnsupportedError, match=r"only flare_adapters\.huggingface"):
        session.join(_adapted(0), playable=100, horizon="")


def _train(model: Any, folder: Path, file: Path) -> None:
    Trainer(
        model=model,
        args=arguments(str(folder)),
        train_dataset=rows("lora", "b"),
        callbacks=[FLCallback(file)],
    ).train()
