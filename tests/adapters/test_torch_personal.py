"""What stays at each site by selection: FedBN's statistics, FedPer's heads."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.quadratics import CURVATURES, FEDAVG, OPTIMA, play
from adapters.sites import manifest, played
from flare_adapters._torch import LocalSession, options
from flare_core import FedProx, Plan, Schedule, Select, Selection
from support import RunServer, SiteFile

ROUNDS = 3


def net() -> nn.Module:
    """Return a body with BatchNorm, and a head."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, 1)})


def train(file: Path, index: int, select: Select) -> dict[str, Tensor]:
    """Train at a site, whose data are of a scale of its own; return the final model."""
    session, model = LocalSession(options(file, None, None, select, "keep")), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(index)
    features = (1 + 3 * index) * torch.randn(8, 3, generator=generator)
    session.join(model, playable=math.inf, horizon="")
    step = 0
    while not session.final:
        while not session.due:
            optimizer.zero_grad()
            found = model["head"](model["body"](features))
            nn.functional.mse_loss(found, features.sum(1, keepdim=True)).backward()
            optimizer.step()
            session.saw(len(features))
            session.at_step(step := step + 1)
        session.exchange()
    session.leave("the test is over")
    return {name: one.clone() for name, one in model.state_dict().items()}


@pytest.mark.parametrize(
    ("select", "personal"),
    [
        ("no_batchnorm", lambda name: name.startswith("body.1.")),
        (["*", "!head.*"], lambda name: name.startswith("head.")),
        (["body.0.*"], lambda name: not name.startswith("body.0.")),
    ],
    ids=["fedbn", "fedper", "only the first layer"],
)
def test_what_is_personal_never_leaves_and_all_else_is_the_same_bit_for_bit(
    select: Select, personal: Callable[[str], bool], pair: Any
) -> None:
    schedule = Schedule(every_n_steps=5)
    server, files = pair(
        Plan(rounds=ROUNDS, schedule=schedule, selection=Selection(sites=2))
    )
    found: dict[int, dict[str, Tensor]] = {}

    def site(index: int) -> None:
        found[index] = train(files[index], index, select)

    *_, last = played(server, lambda: site(0), lambda: site(1))

    names = net().state_dict().keys()
    own = {name for name in names if personal(name)}
    assert last.keys() == names - own
    for index, file in enumerate(files):
        left = [one for one in manifest(file) if one.round >= 0]
        assert {one.name for one in left} == names - own
        assert len(left) == ROUNDS * len(names - own)
        for name, one in last.items():
            assert found[index][name].numpy().tobytes() == one.tobytes()
    for name in own - {"body.1.num_batches_tracked"}:  # they took equally many
        assert not torch.equal(found[0][name], found[1][name])
        assert not torch.equal(found[1][name], net().state_dict()[name])


@pytest.mark.parametrize("pull", [0.0, 0.5, 15.0])
def test_a_personal_model_after_the_run_is_the_minimum_that_ditto_has(
    pull: float, run_server: RunServer, site_file: SiteFile
) -> None:
    after = Plan(rounds=1, schedule=Schedule(every_n_steps=400), local=FedProx(mu=pull))
    server = run_server(after)

    file = site_file("b", server.endpoint)
    *_, last = played(server, lambda: play(file, 1, start=FEDAVG))

    curvature, optimum = CURVATURES[1], OPTIMA[1]
    expected = (curvature * optimum + pull * FEDAVG) / (curvature + pull)
    assert last["weight"][0] == pytest.approx(expected, abs=1e-12)
