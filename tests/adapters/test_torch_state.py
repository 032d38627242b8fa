"""What is exchanged of odd models: wrapped, sparse, with names like a wrapper's."""

import pytest
import torch
from torch import nn

from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._select import choose, members
from flare_adapters._torch._state import fingerprint, frozen, gather, scatter, stays
from flare_core import ConfigurationError, ModelState, TensorClass


class Named(nn.Module):
    """A user's own module may be called as DDP calls what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.module = nn.Linear(2, 2)


def test_a_submodule_called_module_keeps_its_name() -> None:
    found = members(Named())

    assert set(found) == {"weight", "module.weight", "module.bias"}


def test_wrappers_leave_no_trace_in_names() -> None:
    wrapped = nn.Sequential(nn.DataParallel(Named()))
    compiled = torch.compile(Named())

    assert set(members(wrapped)) == {"0.weight", "0.module.weight", "0.module.bias"}
    assert set(members(compiled)) == {"weight", "module.weight", "module.bias"}


def test_tied_weights_are_there_once() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight

    assert set(members(nn.Sequential(first, second))) == {"0.weight"}


class Sparse(nn.Module):
    """A buffer that cannot travel, beside a weight that can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("graph", torch.eye(2).to_sparse())


def test_a_tensor_that_cannot_travel_is_refused_by_name() -> None:
    found = members(Sparse())

    with pytest.raises(TypeError, match=r"'graph'.*sparse.*\"!graph\""):
        gather(found, choose(found, "all"), Ranks())


def test_a_tensor_that_cannot_travel_may_stay() -> None:
    found = members(Sparse())
    chosen = choose(found, ["*", "!graph"])

    (graph,) = stays(found, chosen)

    assert set(gather(found, chosen, Ranks())) == {"weight"}
    assert (graph.name, graph.shape, graph.kind) == ("graph", (2, 2), TensorClass.LOCAL)


def test_a_frozen_parameter_without_memory_is_named() -> None:
    with torch.device("meta"):
        base = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    model = nn.ModuleDict({"base": base, "head": nn.Linear(2, 2)})
    found = members(model)
    chosen = choose(found, "auto")

    with pytest.raises(TypeError, match=r"'base.bias' is on the meta device"):
        fingerprint(found, frozen(found, chosen))


@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.int32, (3,)), (torch.float32, (4,))]
)
def test_weights_of_another_type_or_shape_are_not_loaded(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    found = members(Named())
    other = ModelState({"weight": torch.zeros(shape, dtype=dtype).numpy()})

    with pytest.raises(ConfigurationError, match=r"'weight'.*F32 \(3,\)"):
        scatter(other, found, {"weight": "weight"}, Ranks())
