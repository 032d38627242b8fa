"""Two sites whose optima differ: what any algorithm makes of them can be told by hand.

Site *i* minimises :math:`\\frac{a_i}{2} (w - c_i)^2`, with :math:`a = (1, 4)` and
:math:`c = (0, 1)`: the optimum of both together is 0.8.  Each takes ten steps of rate
0.1 a round.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flare_adapters._torch import LocalSession, options
from flare_core import Local, Plan, Schedule, Selection

CURVATURES, OPTIMA = (1.0, 4.0), (0.0, 1.0)
RATE, STEPS = 0.1, 10
OPTIMUM = 0.8
FEDAVG = 0.6041260076631996
"""Where federated averaging ends: each site forgets by its own curvature."""


def plan(local: Local, *, rounds: int = 40, **settings: Any) -> Plan:
    """Return the plan of both sites."""
    return Plan(
        rounds=rounds,
        local=local,
        **{
            "selection": Selection(sites=2),
            "schedule": Schedule(every_n_steps=STEPS),
            **settings,
        },
    )


class Quadratic(nn.Module):
    """What a site minimises.

    Args:
        index: Of the site.
        size: How many weights there are, all alike.
        start: Where they start.
    """

    def __init__(self, index: int, size: int = 1, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full([size], start, dtype=torch.float64))
        self._curvature, self._optimum = CURVATURES[index], OPTIMA[index]

    def forward(self) -> Tensor:
        return (self._curvature / 2 * (self.weight - self._optimum) ** 2).sum()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE)


def play(
    file: Path,
    index: int,
    *,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    at_start: Callable[[LocalSession], object] = lambda _: None,
    size: int = 1,
    prefix: str = "",
    start: float = 0.0,
) -> None:
    """Play the part of a site with a loop of torch alone.

    Args:
        file: The site's file.
        index: Of the site.
        optimizer_of: Makes the optimizer.
        at_start: Called when a global model is loaded.
        size: How many weights there are, all alike.
        prefix: What the other site's model calls this one.
        start: Where the weights start.
    """
    session = LocalSession(options(file, None, None, "auto", "keep"))
    model: nn.Module = Quadratic(index, size, start)
    whole = nn.ModuleDict({prefix: model}) if prefix else model
    optimizer = optimizer_of(model)
    try:
        session.join(whole, playable=math.inf, horizon="")
        step = 0
        while not session.final:
            at_start(session)
            while not session.due:
                optimizer.zero_grad()
                model().backward()
                session.adjust_gradients(optimizer)
                optimizer.step()
                session.stepped(optimizer)
                session.saw(1)
                session.at_step(step := step + 1)
            session.exchange([optimizer])
    except BaseException as exc:
        session.fail(exc)
        raise
    session.leave("the test is over")
