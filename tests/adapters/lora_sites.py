"""Sites with LoRA weights, whose training is a step in any direction."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, get_peft_model

from adapters.scripts.huggingface_site import llama
from flare_adapters._torch import LocalSession, options
from flare_adapters.huggingface._lora import train_by_turns, wire_of
from flare_core import Lora, Plan, Selection
from support import RunServer, SiteFile

Matrix = npt.NDArray[np.float64]
TASK: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "v_proj"],
}


def adapted(seed: int, *, r: int = 4, **settings: Any) -> Any:
    base = llama(seed=42)
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(r=r, **TASK, **settings))


def changes(model: Any) -> list[Matrix]:
    """Return what the LoRA weights add to each module, as PEFT computes it."""
    return [
        layer.get_delta_weight("default").detach().double().numpy()
        for path, layer in model.named_modules()
        if path.endswith(("q_proj", "v_proj"))
    ]


@torch.no_grad()
def learn(model: Any, seed: int) -> None:
    """Change what is trained, in any direction."""
    random = torch.Generator().manual_seed(seed)
    for one in model.parameters():
        if one.requires_grad:
            one.add_(torch.randn(one.shape, generator=random) * 0.1)


def rest(model: Any) -> None:
    """Learn nothing."""
    del model


class Learn(Protocol):
    """Trains a model as the site of a seed."""

    def __call__(self, model: Any, seed: int) -> None: ...


def play(
    file: Path,
    model: Any,
    learn: Callable[[Any], None],
    seen: list[list[Matrix]],
    measure: Callable[[Any], list[Matrix]] = changes,
) -> None:
    """Play a run without a Trainer; note what was learnt before each exchange."""
    session = LocalSession(options(file, None, 1, "auto", "keep"))
    lora = session.plan.lora
    session.join(model, playable=100, horizon="", wire=wire_of(model, lora))
    while not session.final:
        train_by_turns(model, lora, session.round_number)
        learn(model)
        seen.append(measure(model))
        session.saw(1)
        session.exchange()
    session.leave("the test is over")


def federate(
    models: Sequence[Any],
    plan: Plan,
    run_server: RunServer,
    site_file: SiteFile,
    *,
    learn: Learn = learn,
    measure: Callable[[Any], list[Matrix]] = changes,
) -> tuple[Any, list[list[list[Matrix]]]]:
    """Play a run of these models; return the server, and what each learned."""
    server = run_server(plan)
    seen: list[list[list[Matrix]]] = [[] for _ in models]
    with ThreadPoolExecutor(len(models)) as pool:
        sites = [
            pool.submit(
                play,
                site_file(f"site-{number}", server.endpoint),
                model,
                partial(learn, seed=number),
                seen[number],
                measure,
            )
            for number, model in enumerate(models)
        ]
        for site in sites:
            site.result()
    return server, seen


def plan_of(num_sites: int, lora: Lora, **settings: Any) -> Plan:
    """Return a plan of one round, unless told otherwise."""
    settings = {"rounds": 1, "selection": Selection(sites=num_sites), **settings}
    return Plan(lora=lora, **settings)
