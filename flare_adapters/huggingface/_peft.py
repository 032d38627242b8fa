"""PEFT's own names for what it trains, so that what travels is a PEFT file."""

from collections import Counter

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

RESIDUAL = "flare_residual"
"""The adapter that holds what of the global LoRA ranks the site's own cannot."""


def adapters_of(model: nn.Module) -> dict[str, PeftConfig]:
    """Return the configuration of each adapter that is trained, by its name.

    These are the active ones of the script; none without PEFT.
    """
    if isinstance(model, PeftModel):
        names = model.active_adapters
    elif isinstance(model, PreTrainedModel) and model._hf_peft_config_loaded:  # noqa: SLF001 - transformers has no public one
        names = model.active_adapters()
    else:
        return {}
    return {name: model.peft_config[name] for name in names if name != RESIDUAL}


def private_names(model: nn.Module) -> list[str]:
    """Return the names of what belongs to adapters that are not trained."""
    active = adapters_of(model)
    others = [one for one in getattr(model, "peft_config", {}) if one not in active]
    return [
        name
        for name, _ in model.named_parameters()
        if any(other in name.split(".") for other in others)
    ]


def names_on_wire(model: nn.Module) -> dict[str, str]:
    """Return the names in ``adapter_model.safetensors``, by name in the model.

    The adapter's own name is no part of them, so sites may call it as they like.
    PEFT selects tensors rather than computing them: its names are found by the
    tensors' identity.  Prompt learning is the exception, as what PEFT saves there
    cannot be trained further; it keeps the names in the model.
    """
    names: dict[str, str] = {}
    for adapter, config in adapters_of(model).items():
        if config.is_prompt_learning:
            names |= _without(adapter, model)
        else:
            names |= _selected(adapter, model)
    times = Counter(names.values())  # of several adapters, the same names
    return {name: wire for name, wire in names.items() if times[wire] == 1}


def _selected(adapter: str, model: nn.Module) -> dict[str, str]:
    state = model.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(
        model,
        state_dict=state,
        adapter_name=adapter,
        save_embedding_layers=False,  # "auto" would ask the Hub
    )
    prefix = "" if isinstance(model, PeftModel) else "base_model.model."
    wire = {id(tensor): f"{prefix}{name}" for name, tensor in saved.items()}
    return {
        name: wire[id(tensor)]
        for name, tensor in model.named_parameters()
        if id(tensor) in wire
    }


def _without(adapter: str, model: nn.Module) -> dict[str, str]:
    prefix = f"prompt_encoder.{adapter}."
    return {
        name: f"prompt_encoder.{name.removeprefix(prefix)}"
        for name, _ in model.named_parameters()
        if name.startswith(prefix)
    }
