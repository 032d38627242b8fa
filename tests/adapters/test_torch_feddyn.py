"""FedDyn: pinned numbers, both halves, and what a site keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapters.quadratics import FEDAVG, OPTIMUM, plan, play
from adapters.sites import played, records
from flare_adapters._torch._feddyn import Dynamic
from flare_core import (
    ConfigurationError,
    Encoding,
    FedDyn,
    Local,
    Plan,
    Scaffold,
    Selection,
    UnsupportedError,
)
from flare_core._plan import EncodingUp
from flare_core.application import replay
from support import RunServer, SiteFile


@pytest.mark.parametrize(
    ("alpha", "expected", "away"),
    [(1.0, OPTIMUM, 1e-9), (0.5, OPTIMUM, 1e-9), (1e-9, FEDAVG, 1e-7)],
)
def test_feddyn_ends_at_the_optimum_of_all_and_without_a_pull_as_fedavg(
    alpha: float, expected: float, away: float, pair: Any
) -> None:
    server, files = pair(plan(FedDyn(alpha=alpha), rounds=100))

    *_, last = played(server, *(lambda i=i: play(files[i], i) for i in range(2)))

    assert last.keys() == {"weight"}
    assert last["weight"][0] == pytest.approx(expected, abs=away)


def test_it_takes_the_place_of_a_strategy() -> None:
    plan = Plan(rounds=1).with_setting("local.name=feddyn")

    with pytest.raises(ConfigurationError, match="half at the server"):
        plan.with_setting("strategy.name=fedadam")


def test_a_round_of_fewer_sites_is_refused_in_the_plan() -> None:
    selection = Selection(sites=3, quorum=2)

    with pytest.raises(ValueError, match=r"'feddyn' and selection\.quorum = 2 do"):
        Plan(rounds=1, local=FedDyn(), selection=selection)


@pytest.mark.parametrize("encoding", [Encoding(up="xor"), Encoding(down="int4")])
def test_it_ends_there_however_the_model_travels_that_may(
    encoding: Encoding, pair: Any
) -> None:
    server, files = pair(plan(FedDyn(alpha=1.0), rounds=60, encoding=encoding))

    acts = [lambda i=i: play(files[i], i, size=100) for i in range(2)]
    *_, last = played(server, *acts)

    assert last["weight"] == pytest.approx([OPTIMUM] * 100, abs=1e-9)


@pytest.mark.parametrize("up", ["bf16", "int8", "int4", "topk"])
def test_an_uplink_that_rounds_is_refused_in_the_plan(up: EncodingUp) -> None:
    """With bf16 the quadratics end 3e-3 beside the optimum, with int4 1e-1."""
    with pytest.raises(ValueError, match=r"'feddyn' and encoding\.up = .* do not"):
        Plan(rounds=1, local=FedDyn(), encoding=Encoding(up=up))


def _ended(weight: nn.Parameter) -> Dynamic:
    """Return what has played a round that went from 0 to 1."""
    term = Dynamic(0.5)
    term.beside({"w": weight})
    term.round_started(-1)
    weight.data.fill_(1.0)
    term.round_ended(0)
    return term


def _adjusted(term: Dynamic, weight: nn.Parameter) -> float:
    weight.grad = torch.zeros(1)
    term.adjust(torch.optim.SGD([weight]), 4.0)
    return weight.grad.item()


def test_what_a_site_knows_is_kept_once_its_update_counted(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1))
    _ended(weight).save(tmp_path / "kept")
    term = Dynamic(0.5)
    term.beside({"w": weight})
    term.restore(tmp_path / "kept")

    term.round_started(0)
    weight.data.fill_(3.0)

    assert _adjusted(term, weight) == 4.0 * (0.5 * (3.0 - 1.0) + 0.5 * (1.0 - 0.0))


def test_what_did_not_count_is_forgotten() -> None:
    weight = nn.Parameter(torch.zeros(1))
    term = _ended(weight)

    term.round_started(-1)

    assert _adjusted(term, weight) == 0.0


def test_what_is_gone_is_missed_at_once() -> None:
    term = Dynamic(0.5)
    term.beside({"w": nn.Parameter(torch.zeros(1))})

    with pytest.raises(ConfigurationError, match="'feddyn' is gone"):
        term.round_started(0)
    with pytest.raises(UnsupportedError, match="which updates counted"):
        term.round_started(None)


@pytest.mark.parametrize("local", [FedDyn(), Scaffold()])
def test_the_rounds_are_derived_again(
    local: Local, run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    settings, folder = plan(local, rounds=3, keep_updates=True), tmp_path / "run"
    server = run_server(settings, folder=folder)
    files = [site_file(name, server.endpoint) for name in "ab"]
    played(server, *(lambda i=i: play(files[i], i) for i in range(2)))

    again = list(replay(settings, records(server), folder))

    assert [one.partings for one in again] == [()] * 3
