"""Controls, such as SCAFFOLD's: of all sites of a run, those who are missing too."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

import flare_core as flare
from averaging import Averaging
from flare_core.federation import FedAvg, chosen
from site_scripts import WAIT_S, Local, model, play
from support import RunServer, SiteFile

SCAFFOLD = flare.Scaffold()
PARTS = {"w": np.zeros(3, np.float32), "c": np.zeros(3, np.float32)}
STATE = flare.ModelState(PARTS, classes={"c": flare.TensorClass.CONTROL})


def _update(weights: float, control: float) -> flare.ModelState:
    values = {"w": PARTS["w"] + weights, "c": PARTS["c"] + control}
    return flare.ModelState(values, classes=STATE.layout.classes)


@pytest.mark.parametrize(
    ("updates", "weight", "control"),
    [
        ([(1, 4), (3, 8), (2, 0)], 1.5, 4.0),
        ([(1, 4), (3, 8)], 4 / 3, 4.0),  # two of three: they move it by two thirds
        ([(1, 6)], 1.0, 2.0),
    ],
)
def test_a_missing_site_leaves_the_control_where_it_is(
    tmp_path: Path, updates: list[tuple[int, int]], weight: float, control: float
) -> None:
    rounds = Averaging(tmp_path, FedAvg(), STATE, num_sites=3)
    examples = (50, 10, 20)

    found = rounds.play(
        *((_update(*one), n) for one, n in zip(updates, examples, strict=False))
    )

    assert found["c"].tolist() == [control] * 3
    assert found["w"].tolist() == pytest.approx([weight] * 3)


def _exchange(link: flare.Link, current: flare.GlobalModel) -> flare.GlobalModel:
    return link.exchange(
        flare.Update(
            site="",
            round_number=current.round_number,
            weights=current.weights,
            num_examples=1,
        )
    )


def test_a_site_is_told_which_of_its_updates_counted(
    run_server: RunServer, site_file: SiteFile
) -> None:
    plan = flare.Plan(
        rounds=3,
        selection=flare.Selection(sites=2, quorum=1),
        round=flare.RoundPolicy(grace_s=0),
    )
    server = run_server(plan)
    a, b = (flare.connect(flare.site(site_file(n, server.endpoint))) for n in "ab")
    proposal = flare.Proposal(weights=STATE)
    with ThreadPoolExecutor() as pool:
        joined = pool.submit(a.join, proposal)
        of_b = b.join(proposal)
        of_a = joined.result(WAIT_S)
    counted = [(of_a.counted, of_b.counted)]

    of_a = _exchange(a, of_a)  # and ends round 0 without b
    of_b = _exchange(b, of_b)  # too late
    counted.append((of_a.counted, of_b.counted))
    of_b = _exchange(b, of_b)
    of_a = _exchange(a, of_a)
    counted.append((of_a.counted, of_b.counted))
    of_a = _exchange(a, of_a)
    of_b = _exchange(b, of_b)
    counted.append((of_a.counted, of_b.counted))

    assert counted == [(-1, -1), (0, -1), (0, 1), (2, 1)]
    assert of_a.final
    a.leave({})
    b.leave({})


@pytest.mark.parametrize(
    "assignment", ["selection.newcomers=true", "round.late_weight=0.5"]
)
def test_what_controls_cannot_be_with_is_refused_in_the_plan(assignment: str) -> None:
    plan = flare.Plan(rounds=1, local=SCAFFOLD)

    with pytest.raises(flare.ConfigurationError, match=r"'scaffold' .* together"):
        plan.with_setting(assignment)
    with pytest.raises(ValueError, match=r"leave selection\.newcomers away"):
        msgspec.structs.replace(plan, selection=flare.Selection(newcomers=True))


@pytest.mark.parametrize("local", [SCAFFOLD, flare.FedDyn()])
def test_another_combination_than_the_mean_is_refused(local: flare.Local) -> None:
    plan = flare.Plan(
        rounds=1,
        local=local,
        selection=flare.Selection(sites=3),
        aggregation=flare.AggregationSettings(name="median"),
    )

    with pytest.raises(flare.ConfigurationError, match=r"mean of all .*'median'"):
        chosen(plan)


def test_a_loop_of_one_s_own_is_told_that_nothing_would_be_corrected(
    run_server: RunServer, site_file: SiteFile
) -> None:
    def train(current: flare.ClientRound) -> Local:
        raise AssertionError(current)

    server = run_server(flare.Plan(rounds=1, local=SCAFFOLD))
    file = site_file("a", server.endpoint)

    with pytest.raises(flare.ConfigurationError, match="needs an adapter"):
        play(file, model(1.0), train)
