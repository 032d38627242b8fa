"""Which tensors of a model are exchanged, under which names, and which stay."""

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import Tensor, nn

from flare_core import ConfigurationError, Select, TensorClass

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What torch.compile, FSDP and activation checkpointing call the module they wrap."""
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - torch has no public one


@final
@dataclass(frozen=True, slots=True)
class Member:
    """A parameter or persistent buffer of a model.

    Attributes:
        tensor: Its values.
        parameter: Whether it is a parameter, not a buffer.
        trained: Whether training changes it: a parameter with ``requires_grad``, or
            a buffer beside one.
        frozen: Whether it belongs to a base that all sites share: a parameter that is
            not trained, or a buffer beside such parameters only.  A buffer of a
            module without parameters, such as the class weights of a loss, may be a
            site's own.
        batch_norm: Whether it belongs to a BatchNorm layer.
        control: Whether it is no part of the model, but exchanged beside it.
    """

    tensor: Tensor
    parameter: bool
    trained: bool
    frozen: bool
    batch_norm: bool
    control: bool = False

    @property
    def kind(self) -> TensorClass:
        """Its class in the federation; integers are always counters."""
        if self.control:
            return TensorClass.CONTROL
        if not (self.tensor.is_floating_point() or self.tensor.is_complex()):
            return TensorClass.COUNTER
        return TensorClass.PARAMETER if self.parameter else TensorClass.BUFFER


Members = Mapping[str, Member]


def members(model: nn.Module) -> dict[str, Member]:
    """Return what a model is made of, by name: tied tensors once, wrappers left out.

    Raises:
        ConfigurationError: If two tensors have the same name without the wrappers.
    """
    wrapped = _wrapped(model)
    persistent = {_unwrapped(name, wrapped) for name in model.state_dict()}
    found: dict[str, Member] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for local, member in _own(module):
            name = _unwrapped(f"{path}.{local}".lstrip("."), wrapped)
            if name not in persistent or id(member.tensor) in seen:
                continue
            if name in found:
                msg = f"two tensors of the model are called {name!r}; rename one"
                raise ConfigurationError(msg)
            seen.add(id(member.tensor))
            found[name] = member
    return found


def control(tensor: Tensor) -> Member:
    """Return what is exchanged beside a model."""
    return Member(tensor, False, False, False, False, control=True)


def choose(
    found: Members, select: Select, *, names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what is exchanged: name on the wire → name in the model.

    Args:
        found: The members of the model.
        select: ``"auto"`` (``"trainable"`` where anything is frozen, else ``"all"``),
            ``"all"``, ``"trainable"`` (and the buffers beside it),
            ``"no_batchnorm"`` (as ``"auto"``, without the BatchNorm layers: FedBN),
            or globs over the names, where ``"!glob"`` takes out again.
        names: Other names on the wire, by name in the model.

    Raises:
        ConfigurationError: If nothing is left to exchange.
    """
    on_wire = {(names or {}).get(name, name): name for name in found}
    chosen = {
        wire: name
        for wire, name in on_wire.items()
        if _wanted(wire, found[name], select, frozen=_anything_frozen(found))
    }
    if not chosen:
        some = ", ".join(sorted(on_wire)[:5])
        msg = f"select = {select!r} leaves nothing to exchange; there are {some}, …"
        raise ConfigurationError(msg)
    return chosen


def _wrapped(model: nn.Module) -> set[str]:
    """Return the paths that only a wrapper adds: DDP's, or of `_WRAPPED`."""
    paths = [path for path, _ in model.named_modules()]
    parallel = {
        f"{path}.module".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, _PARALLEL)
    }
    return parallel | {one for one in paths if one.rpartition(".")[2] in _WRAPPED}


def _unwrapped(name: str, wrapped: Container[str]) -> str:
    parts = name.split(".")
    paths = itertools.accumulate(parts, lambda path, part: f"{path}.{part}")
    return ".".join(
        part for path, part in zip(paths, parts, strict=True) if path not in wrapped
    )


def _own(module: nn.Module) -> Iterator[tuple[str, Member]]:
    batch_norm = isinstance(module, _BATCH_NORM)
    parameters = list(module.named_parameters(recurse=False))
    trained = any(parameter.requires_grad for _, parameter in parameters)
    for name, parameter in parameters:
        learns = parameter.requires_grad
        yield name, Member(parameter, True, learns, not learns, batch_norm)
    beside = bool(parameters) and not trained
    for name, buffer in module.named_buffers(recurse=False):
        yield name, Member(buffer, False, trained, beside, batch_norm)


def _anything_frozen(found: Members) -> bool:
    return any(one.parameter and not one.trained for one in found.values())


def _wanted(wire: str, member: Member, select: Select, *, frozen: bool) -> bool:
    match select:
        case "all":
            return True
        case "trainable":
            return member.trained
        case "auto":
            return member.trained or not frozen
        case "no_batchnorm":
            return (member.trained or not frozen) and not member.batch_norm
        case str():
            return _matches(wire, [select])
        case _:
            return _matches(wire, select)


def _matches(wire: str, globs: Sequence[str]) -> bool:
    wanted = False
    for glob in globs:
        if fnmatchcase(wire, glob.removeprefix("!")):
            wanted = not glob.startswith("!")
    return wanted
