"""Reads a model into a `ModelState` and writes one back, whole or sharded."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from flare_adapters._torch._arrays import code_of, to_array, to_tensors
from flare_adapters._torch._host import Host
from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._select import Members
from flare_core import (
    ConfigurationError,
    ModelState,
    TensorClass,
    TensorSpec,
    UnsupportedError,
)


def gather(
    found: Members, chosen: Mapping[str, str], ranks: Ranks, host: Host
) -> ModelState:
    """Return the chosen tensors; on other ranks than the first, none.

    Whole tensors on the CPU are views of live memory, those of a device of the host's:
    do not train until the state is used.  Sharded ones are gathered one by one, on all
    ranks together.

    Raises:
        TypeError: If a tensor cannot travel; it is named.
    """
    arrays: dict[str, Any] = {}
    classes: dict[str, TensorClass] = {}
    for wire, name in chosen.items():
        code_of(wire, found[name].tensor)  # raises on all ranks, or on none
    for wire, name in chosen.items():
        whole = _whole(found[name].tensor)
        if ranks.first:
            arrays[wire] = to_array(wire, host.take(wire, whole))
            classes[wire] = found[name].kind
    host.wait()
    return ModelState(arrays, classes=classes)


@torch.no_grad()
def scatter(
    weights: ModelState, found: Members, chosen: Mapping[str, str], ranks: Ranks
) -> None:
    """Copy the weights of the first rank into the model, in place, on all ranks.

    A site of one rank copies each tensor straight to where it is: a GPU needs no memory
    for it.

    Raises:
        ConfigurationError: If names, types or shapes are not those of the model.
    """
    ranks.from_first(lambda: _require_same(weights, found, chosen))
    received = to_tensors(
        weights, {wire: found[name].tensor for wire, name in chosen.items()}
    )
    for wire, name in chosen.items():
        tensor = found[name].tensor
        whole = ranks.share(received.get(wire), tensor)
        if isinstance(tensor, DTensor):
            whole = distribute_tensor(
                whole, tensor.device_mesh, tensor.placements, src_data_rank=None
            )
        tensor.copy_(whole)


def stays(found: Members, chosen: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Return the tensors that never leave, with their names in the model."""
    leaving = set(chosen.values())
    return tuple(
        TensorSpec(
            name, _type_of(one.tensor), tuple(one.tensor.shape), TensorClass.LOCAL
        )
        for name, one in found.items()
        if name not in leaving
    )


def frozen(found: Members, chosen: Mapping[str, str]) -> list[str]:
    """Return the names of the base that all sites share: what is frozen and stays."""
    leaving = set(chosen.values())
    return [
        name
        for name, one in sorted(found.items())
        if one.frozen and name not in leaving
    ]


def refuse_thawed(found: Members, names: Iterable[str]) -> None:
    """Raise if a parameter among these, frozen before, is trained now.

    Raises:
        UnsupportedError: If so: it would drift at each site, and never be averaged.
    """
    for name in names:
        if found[name].tensor.requires_grad:
            msg = (
                f"parameter {name!r} was frozen when the run began and is trained now: "
                "expected what is exchanged to stay the same; exchange it from the "
                'beginning with select="all"'
            )
            raise UnsupportedError(msg)


def fingerprint(found: Members, names: Iterable[str]) -> str:
    """Return the SHA-256 of these frozen tensors, or "" if there are none.

    Names, types, shapes and bytes count, quantised weights as they are stored.  The
    statistics of a frozen BatchNorm count too: left in train mode they drift, and a
    site that comes back from its own checkpoint has another base than the others.

    Raises:
        TypeError: If one has no bytes to compare; it is named.
    """
    names = list(names)
    if not names:
        return ""
    sha256 = hashlib.sha256()
    for name in names:
        tensor = found[name].tensor
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "on the meta device" if tensor.is_meta else str(tensor.layout)
            msg = (
                f"frozen tensor {name!r} is {kind}: expected a dense one in memory, "
                "to compare with the other sites'; load the model before training"
            )
            raise TypeError(msg)
        tensor = _whole(tensor).detach().cpu().contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def trainable(found: Members, chosen: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the chosen parameters that training changes, by name on the wire."""
    return {
        wire: found[name].tensor
        for wire, name in chosen.items()
        if found[name].parameter and found[name].trained
    }


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _type_of(tensor: Tensor) -> str:
    try:
        return code_of("", tensor)
    except TypeError:
        return str(tensor.dtype).removeprefix("torch.")


def _described(wire: str, tensor: Tensor) -> str:
    return str(TensorSpec(wire, code_of(wire, tensor), tuple(tensor.shape)))


def _require_same(
    weights: ModelState, found: Members, chosen: Mapping[str, str]
) -> None:
    theirs = {spec.name: str(spec) for spec in weights.layout.tensors}
    ours = {wire: _described(wire, found[name].tensor) for wire, name in chosen.items()}
    for name in sorted(theirs | ours):
        if theirs.get(name) != ours.get(name):
            msg = (
                f"tensor {name!r}: the global model has {theirs.get(name, 'none')}, "
                f"this site's model {ours.get(name, 'none')}; was it changed after "
                "the run had started?"
            )
            raise ConfigurationError(msg)
