"""SCAFFOLD: pinned numbers, what it keeps, and what it cannot do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapters.quadratics import FEDAVG, OPTIMUM, plan, play
from adapters.sites import manifest, models, played
from flare_adapters._torch import LocalSession
from flare_adapters._torch._scaffold import Scaffold
from flare_adapters._torch._select import choose, members
from flare_adapters._torch._state import trainable
from flare_core import (
    ConfigurationError,
    Encoding,
    Plain,
    Plan,
    PolicyError,
    RoundPolicy,
    Selection,
    UnsupportedError,
)
from flare_core import Scaffold as ScaffoldSettings
from support import RunningServer

CONTROL = "scaffold:weight"


def _played(pair: Any, settings: Plan, **told: Any) -> tuple[RunningServer, list[Path]]:
    server, files = pair(settings)
    acts = [lambda i=i: play(files[i], i, **told) for i in range(2)]
    played(server, *acts)
    return server, files


class Own:
    """Notes the control of each site when a round starts."""

    def __init__(self) -> None:
        self.controls: dict[str, list[float]] = {"a": [], "b": []}

    def __call__(self, session: LocalSession) -> None:
        (control,) = session._correction._controls.values()  # type: ignore[attr-defined] # SCAFFOLD's
        self.controls[session._site.name].append(control.own.mean().item())

    def assert_mean_is(self, shared: list[float]) -> None:
        means = np.mean([self.controls[name] for name in "ab"], axis=0)
        np.testing.assert_allclose(means, shared, atol=1e-14)


def test_federated_averaging_ends_between_the_optima_at_its_own_place(
    pair: Any,
) -> None:
    server, _ = _played(pair, plan(Plain()))

    assert models(server)[-1]["weight"][0] == pytest.approx(FEDAVG, abs=1e-14)


def test_scaffold_ends_at_the_optimum_of_all(pair: Any) -> None:
    own = Own()

    server, _ = _played(pair, plan(ScaffoldSettings()), at_start=own)

    assert models(server)[-1]["weight"][0] == pytest.approx(OPTIMUM, abs=1e-9)
    assert own.controls["a"][-1] == pytest.approx(OPTIMUM, abs=1e-6)
    assert own.controls["b"][-1] == pytest.approx(-OPTIMUM, abs=1e-6)
    own.assert_mean_is([float(one[CONTROL].mean()) for one in models(server)[:-1]])


def test_a_site_whose_update_came_too_late_keeps_the_control_it_had(pair: Any) -> None:
    own = Own()
    late: list[str] = []

    def train(session: LocalSession) -> None:
        own(session)
        number = session.round_number
        if (number % 2 == 0) == (session._site.name == "a"):  # the other one's turn
            server.until(f"RoundRecord(round={number},")
            late.append(session._site.name)

    settings = plan(
        ScaffoldSettings(),
        rounds=120,
        selection=Selection(sites=2, quorum=1),
        round=RoundPolicy(grace_s=0),
    )
    server, files = pair(settings)
    acts = [lambda i=i: play(files[i], i, at_start=train) for i in range(2)]
    played(server, *acts)

    assert {name: late.count(name) for name in "ab"} == {"a": 60, "b": 60}
    own.assert_mean_is([float(one[CONTROL].mean()) for one in models(server)[:-1]])
    assert models(server)[-1]["weight"][0] == pytest.approx(OPTIMUM, abs=1e-6)


@pytest.mark.parametrize("up", ["int8", "topk", "xor"])
def test_controls_are_exact_however_the_model_travels(pair: Any, up: Any) -> None:
    own = Own()
    encoding = Encoding(up=up, down="none" if up == "topk" else up)
    settings = plan(ScaffoldSettings(), rounds=10, encoding=encoding)

    server, _ = _played(pair, settings, at_start=own, size=100)

    own.assert_mean_is([float(one[CONTROL].mean()) for one in models(server)[:-1]])


def test_the_manifest_names_the_controls_that_left(pair: Any) -> None:
    _, files = _played(pair, plan(ScaffoldSettings(), rounds=1))

    left = [(one.round, one.name, one.dtype) for one in manifest(files[1])]

    assert left == [(0, CONTROL, "F64"), (0, "weight", "F64")]


def test_a_site_s_policy_has_to_let_controls_leave(pair: Any) -> None:
    server, files = pair(plan(ScaffoldSettings(), rounds=1))
    with files[0].open("a") as file:
        file.write('[policy]\ntensors = ["weight"]\n')

    with pytest.raises(PolicyError, match="'scaffold:weight'"):
        play(files[0], 0)
    server.close()


def test_what_leaves_is_of_the_parameters_that_are_exchanged_and_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    found = members(model)
    chosen = choose(found, ["*", "!2.bias"])

    beside = Scaffold().beside(trainable(found, chosen))

    names = ("1.weight", "1.bias", "2.weight")
    assert beside.keys() == {f"scaffold:{name}" for name in names}


def _begun(
    parameter: nn.Parameter, *, counted: int | None = -1
) -> tuple[Scaffold, torch.Tensor]:
    """Return a correction at the start of a round, and what is exchanged by it."""
    correction = Scaffold()
    (shared,) = correction.beside({"w": parameter}).values()
    correction.round_started(counted)
    return correction, shared


def _step(correction: Scaffold, optimizer: torch.optim.Optimizer) -> None:
    correction.adjust(optimizer)
    optimizer.step()
    correction.stepped(optimizer)


def test_a_schedule_within_the_round_is_counted_as_it_was() -> None:
    weight = nn.Parameter(torch.ones(1))
    correction, shared = _begun(weight)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.full([1], 3.0)

    for rate in (0.5, 0.25, 0.0):
        optimizer.param_groups[0]["lr"] = rate
        _step(correction, optimizer)
    correction.round_ended(0)

    assert shared.item() == 3.0  # the gradient, whatever the rates


def test_a_round_without_a_step_changes_no_control() -> None:
    weight = nn.Parameter(torch.ones(1))
    correction, shared = _begun(weight)
    shared.fill_(5.0)
    correction.round_started(-1)

    correction.round_ended(0)

    assert shared.item() == 5.0


def test_controls_of_low_precision_are_float32() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    correction, shared = _begun(weight)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.ones_like(weight)

    _step(correction, optimizer)
    correction.round_ended(0)

    assert shared.dtype == torch.float32
    assert shared.tolist() == [1.0, 1.0]


def test_a_control_is_as_large_as_the_gradients_are_scaled() -> None:
    weight = nn.Parameter(torch.zeros(1))
    correction, shared = _begun(weight)
    shared.fill_(0.5)
    weight.grad = torch.tensor([8.0])

    correction.adjust(torch.optim.SGD([weight]), 4.0)

    assert weight.grad.item() == 8.0 + 4.0 * 0.5


def test_a_control_that_is_gone_is_missed_at_once(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    correction, _ = _begun(weight)
    correction.round_ended(0)
    correction.save(tmp_path / "kept")

    again, later = Scaffold(), Scaffold()
    for one in (again, later):
        one.beside({"w": weight})
    again.restore(tmp_path / "kept")

    again.round_started(0)
    with pytest.raises(ConfigurationError, match=r"round 0, .*'scaffold' is gone"):
        later.round_started(0)
    with pytest.raises(ConfigurationError, match="'scaffold' keeps of this"):
        later.restore(tmp_path / "nothing")
    with pytest.raises(UnsupportedError, match="which updates counted"):
        later.round_started(None)


@pytest.mark.parametrize(
    ("optimizer", "warned"),
    [
        (lambda one: torch.optim.SGD(one, lr=0.1), False),
        (lambda one: torch.optim.SGD(one, lr=0.1, momentum=0.9), True),
        (torch.optim.AdamW, True),
    ],
)
def test_another_optimizer_than_plain_sgd_is_warned_of_once(
    optimizer: Any, caplog: pytest.LogCaptureFixture, *, warned: bool
) -> None:
    weight = nn.Parameter(torch.zeros(1))
    correction, _ = _begun(weight)
    made = optimizer([weight])
    weight.grad = torch.ones(1)

    for _ in range(2):
        _step(correction, made)

    assert caplog.text.count("is for plain SGD") == int(warned)


def test_a_sparse_gradient_is_refused() -> None:
    words = nn.Embedding(4, 2, sparse=True)
    correction, _ = _begun(words.weight)
    words(torch.tensor([1])).sum().backward()

    with pytest.raises(UnsupportedError, match=r"'scaffold' .*sparse.*\(4, 2\)"):
        correction.adjust(torch.optim.SGD(words.parameters()))
