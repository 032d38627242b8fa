"""What is exchanged of odd models: wrapped, sparse, with names like a wrapper's."""

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flare_adapters._torch._host import Host
from flare_adapters._torch._metrics import scalars
from flare_adapters._torch._proximal import Proximal
from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._select import _matches, choose, members
from flare_adapters._torch._state import fingerprint, frozen, gather, scatter, stays
from flare_core import ConfigurationError, ModelState, TensorClass, UnsupportedError
from flare_core.application._policy import matches


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
        gather(found, choose(found, "all"), Ranks(), Host())


def test_a_tensor_that_cannot_travel_may_stay() -> None:
    found = members(Sparse())
    chosen = choose(found, ["*", "!graph"])

    (graph,) = stays(found, chosen)

    assert set(gather(found, chosen, Ranks(), Host())) == {"weight"}
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


def test_two_tensors_of_one_name_without_wrappers_are_refused() -> None:
    odd = Named()
    odd.add_module("_orig_mod", Named())  # as torch.compile calls what it wraps

    with pytest.raises(ConfigurationError, match=r"'weight'; rename one"):
        members(odd)


def base_of(model: nn.Module) -> str:
    found = members(model)
    return fingerprint(found, frozen(found, choose(found, "auto")))


def test_the_statistics_of_a_frozen_layer_belong_to_the_base() -> None:
    body = nn.BatchNorm1d(2).requires_grad_(requires_grad=False)
    model = nn.Sequential(body, nn.Linear(2, 1))
    before = base_of(model)

    body.running_mean.add_(1.0)

    assert base_of(model) != before


def test_a_sites_own_class_weights_are_not_part_of_the_base() -> None:
    body = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    model = nn.ModuleDict({"body": body, "head": nn.Linear(2, 2), "loss": loss})
    before = base_of(model)

    loss.weight.add_(1.0)

    assert base_of(model) == before


def test_loading_asks_once_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    quiet = warnings.catch_warnings

    def counted() -> Any:
        times.append(1)
        return quiet()

    found = members(Named())
    chosen = choose(found, "all")
    weights = gather(found, chosen, Ranks(), Host())
    monkeypatch.setattr(warnings, "catch_warnings", counted)

    scatter(weights, found, chosen, Ranks())

    assert len(times) == 1


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    metrics = {"loss": math.nan, "text": "no", "two": torch.ones(2), "one": 1}

    assert scalars(metrics) == {"one": 1.0}


def test_fedprox_refuses_a_sparse_gradient() -> None:
    words = nn.Embedding(4, 2, sparse=True)
    term = Proximal(0.1)
    term.beside({"words": words.weight})
    term.round_started(None)
    words(torch.tensor([1])).sum().backward()

    with pytest.raises(UnsupportedError, match=r"mu = 0.1 .*sparse.*\(4, 2\)"):
        term.adjust(torch.optim.SGD(words.parameters()))


def test_fedprox_pulls_as_hard_as_the_gradients_are_scaled() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    term = Proximal(0.5)
    term.beside({"weight": weight})
    term.round_started(None)
    weight.data.fill_(3.0)
    weight.grad = torch.tensor([8.0])

    term.adjust(torch.optim.SGD([weight]), 4.0)

    assert weight.grad.item() == 8.0 + 4.0 * 0.5 * (3.0 - 1.0)


def test_fedprox_pulls_towards_the_global_model_of_the_round() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    term = Proximal(0.5)
    term.beside({"weight": weight})
    term.round_started(None)
    weight.data.fill_(3.0)
    term.round_started(None)
    weight.data.fill_(7.0)
    weight.grad = torch.zeros(1)

    term.adjust(torch.optim.SGD([weight]))

    assert weight.grad.item() == 0.5 * (7.0 - 3.0)


def test_fedprox_ends_between_the_optimum_of_the_site_and_the_global_model() -> None:
    curvature, optimum, mu, start = 4.0, 1.0, 0.5, 0.2
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.05)
    term = Proximal(mu)
    term.beside({"weight": weight})
    term.round_started(None)

    for _ in range(500):
        optimizer.zero_grad()
        (curvature / 2 * (weight - optimum) ** 2).sum().backward()
        term.adjust(optimizer)
        optimizer.step()

    expected = (curvature * optimum + mu * start) / (curvature + mu)
    assert weight.item() == pytest.approx(expected, abs=1e-14)
    assert weight.item() == pytest.approx(0.91111, abs=2e-6)


_LETTERS = st.text("ab.*!?", max_size=4)


@given(_LETTERS, st.lists(_LETTERS, max_size=4))
def test_a_site_s_policy_reads_globs_as_select_does(
    name: str, globs: list[str]
) -> None:
    assert matches(name, globs) == _matches(name, globs)
