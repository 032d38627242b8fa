"""Every PEFT method: what travels is PEFT's own file, and nothing of the base."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import Trainer

from adapters.huggingface_runs import records_of, stand_still
from adapters.scripts.huggingface_site import arguments, llama, rows
from flare_adapters.huggingface import FLCallback
from flare_core import Plan, Selection, UnsupportedError
from flare_core.application import ManifestEntry, Published
from flare_core.communication import pack
from support import RunningServer, RunServer, SiteFile

# peft 0.21 asks transformers 5 by an old name, and warns of adapters it makes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]
QV = ["q_proj", "v_proj"]
TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
METHODS: dict[str, partial[PeftConfig]] = {
    "lora": partial(LoraConfig, target_modules=QV, r=4, **TASK),
    "lora+bias": partial(LoraConfig, target_modules=QV, bias="lora_only", **TASK),
    "rslora+dora": partial(
        LoraConfig, target_modules=QV, use_dora=True, use_rslora=True, **TASK
    ),
    "lora+head": partial(
        LoraConfig, target_modules=QV, modules_to_save=["lm_head"], **TASK
    ),
    "lora+embeddings": partial(
        LoraConfig, target_modules=[*QV, "embed_tokens"], **TASK
    ),
    "lora+tokens": partial(
        LoraConfig, target_modules=QV, trainable_token_indices=[1, 2], **TASK
    ),
    "ia3": partial(
        IA3Config,
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        **TASK,
    ),
    "vera": partial(VeraConfig, target_modules=["q_proj"], r=4, **TASK),
    "vera, projections apart": partial(
        VeraConfig, target_modules=["q_proj"], r=4, save_projection=False, **TASK
    ),
    "loha": partial(LoHaConfig, target_modules=QV, r=4, **TASK),
    "oft": partial(OFTConfig, target_modules=QV, r=0, oft_block_size=4, **TASK),
    "layer norm": partial(LNTuningConfig, target_modules=["input_layernorm"], **TASK),
    "randlora": partial(RandLoraConfig, target_modules=["q_proj"], r=4, **TASK),
}
PROMPTS: dict[str, partial[PeftConfig]] = {
    "prompt": partial(PromptTuningConfig, num_virtual_tokens=2, **TASK),
    "prefix": partial(PrefixTuningConfig, num_virtual_tokens=2, **TASK),
    "p-tuning": partial(
        PromptEncoderConfig, num_virtual_tokens=2, encoder_hidden_size=8, **TASK
    ),
}


def adapted(config: PeftConfig, seed: int, adapter: str = "default") -> Any:
    """The base of all sites, and an adapter that has something to say."""
    base = llama(seed=42, attention_bias=True)
    torch.manual_seed(seed)
    model = get_peft_model(base, config, adapter_name=adapter)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(torch.randn_like(one) * 0.1)
    return model


def train(model: Any, folder: Path, file: Path, **settings: Any) -> None:
    Trainer(
        model=model,
        args=arguments(str(folder), **settings),
        train_dataset=rows("lora", "b"),
        callbacks=[FLCallback(file)],
    ).train()


def published(server: RunningServer) -> list[dict[str, Tensor]]:
    """Return the global models: the initial one first."""
    server.result()
    return [
        load(b"".join(pack(event.weights)))
        for event in server.events
        if isinstance(event, Published)
    ]


def logits(model: Any) -> Tensor:
    ids = torch.arange(8)[None]
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids).logits
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_travels_is_the_file_that_peft_saves(
    method: str, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=2))
    model = adapted(METHODS[method](), seed=1)

    train(model, tmp_path, site_file("a", server.endpoint))

    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = sum(one.requires_grad for one in model.parameters())
    final = published(server)[-1]
    assert len(final) == trained
    assert final.keys() <= saved.keys()
    assert all(torch.equal(final[name], saved[name]) for name in final)
    if method not in {"vera", "randlora"}:  # PEFT saves frozen projections with them
        assert final.keys() == saved.keys()
    again = PeftModel.from_pretrained(llama(seed=42, attention_bias=True), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("method", [*METHODS, *PROMPTS])
def test_all_sites_start_from_one_adapter_whatever_they_call_it(
    method: str, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    config = (METHODS | PROMPTS)[method]()
    giver = adapted(config, seed=1)
    taker = adapted(config, seed=2, adapter="ours")
    assert not torch.equal(logits(taker), logits(giver))

    with_a_still_site(run_server, site_file, tmp_path, giver, taker)

    assert torch.equal(logits(taker), logits(giver))


def test_several_adapters_keep_their_names(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    model = adapted(METHODS["lora"](), seed=1)
    model.add_adapter("more", METHODS["lora"]())
    model.base_model.set_adapter(["default", "more"])
    server = run_server(Plan(rounds=1))

    train(model, tmp_path, site_file("a", server.endpoint))

    kinds = {name.split(".")[-2] for name in published(server)[-1]}
    assert kinds == {"default", "more"}


def test_an_adapter_that_rests_stays(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    model = adapted(METHODS["lora"](), seed=1)
    model.add_adapter("private", METHODS["lora"]())
    server = run_server(Plan(rounds=1))

    train(model, tmp_path, site_file("a", server.endpoint))

    assert len(published(server)[-1]) == 4


def test_an_adapter_of_transformers_itself_travels_as_peft_saves_it(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    model = llama(seed=42)
    model.add_adapter(METHODS["lora"]())
    server = run_server(Plan(rounds=1))

    train(model, tmp_path, site_file("a", server.endpoint))

    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    final = published(server)[-1]
    assert final.keys() == saved.keys()
    assert all(torch.equal(final[name], saved[name]) for name in final)


def test_a_round_costs_the_bytes_of_the_adapter_and_nothing_of_the_base(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=3))
    model = adapted(LoraConfig(target_modules="all-linear", r=64, **TASK), seed=1)

    train(model, tmp_path, site_file("a", server.endpoint))

    model.save_pretrained(tmp_path)
    allowed = 1.02 * (tmp_path / "adapter_model.safetensors").stat().st_size
    records = records_of(server)
    assert len(records) == 3
    for record in records:
        assert 0 < record.bytes_up <= allowed
        assert 0 < record.bytes_down <= allowed
    manifest = (tmp_path / "manifest-a.jsonl").read_bytes()
    left = {
        entry.name
        for entry in msgspec.json.Decoder(ManifestEntry).decode_lines(manifest)
    }
    assert left == load_file(tmp_path / "adapter_model.safetensors").keys()


def test_adalora_is_refused(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=1))
    config = AdaLoraConfig(target_modules=QV, total_step=9, init_r=6, **TASK)

    with pytest.raises(UnsupportedError, match="AdaLoRA"):
        train(adapted(config, seed=1), tmp_path, site_file("a", server.endpoint))

    assert "UnsupportedError" in server.result().error


def with_a_still_site(
    run_server: RunServer, site_file: SiteFile, folder: Path, giver: Any, taker: Any
) -> None:
    """Play a round in which neither site learns, and the first has the word."""
    server = run_server(Plan(rounds=1, selection=Selection(sites=2)))

    with ThreadPoolExecutor(1) as pool:
        site = pool.submit(stand_still, site_file("a", server.endpoint), giver)
        train(taker, folder, site_file("b", server.endpoint), learning_rate=0.0)
        site.result()
