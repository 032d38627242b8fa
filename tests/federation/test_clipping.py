"""Aggregations that shorten the steps of the updates."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging import Averaging
from combined import SEEDS, combined, few, honest_sites, vector
from flare_core import Aggregation
from flare_core.federation import (
    CentredClipping,
    FedAvg,
    Mean,
    NormBounding,
)


@few
@given(SEEDS, st.floats(0.1, 100))
def test_one_site_moves_a_bounded_norm_by_no_more_than_its_share(
    seed: int, most_norm: float
) -> None:
    sites = honest_sites(seed, 4)
    rule = NormBounding(most_norm=most_norm, by_examples=True)

    for hostile in (np.zeros(50), 1e30 * sites[0]):
        updates = [({"w": one}, n) for one, n in zip(sites, (4, 1, 2, 3), strict=True)]
        without = combined(rule, *updates)["w"]
        updates[1] = ({"w": hostile}, 1)
        moved = np.linalg.norm(combined(rule, *updates)["w"] - without)

        assert moved <= 2 * most_norm * 0.1 * (1 + 1e-9)


def test_steps_that_are_not_too_long_make_the_mean_bit_for_bit() -> None:
    updates = [
        ({"w": one}, n) for one, n in zip(honest_sites(1, 4), (4, 1, 2, 3), strict=True)
    ]
    first = {"w": np.ones(50)}

    bounded = combined(
        NormBounding(most_norm=1e3, by_examples=True), *updates, first=first
    )

    mean = combined(Mean(), *updates, first=first)
    assert bounded["w"].tobytes() == mean["w"].tobytes()


def test_a_long_step_keeps_its_direction() -> None:
    found = combined(
        NormBounding(most_norm=5.0),
        ({"w": [31.0], "b": [41.0]}, 7),
        ({"w": [2.0], "b": [1.0]}, 1),
        first={"w": [1.0], "b": [1.0]},
    )

    assert found["w"] == pytest.approx([1 + (3 + 1) / 2])
    assert found["b"] == pytest.approx([1 + (4 + 0) / 2])


def test_the_centre_of_the_clipping_is_the_step_of_the_last_round(
    tmp_path: Path,
) -> None:
    rule = CentredClipping(radius=1.0)
    rounds = Averaging(tmp_path, FedAvg(), {"w": [0.0]}, rule=rule)

    found = []
    for values in ((3.0, 4.0), (7.0, 1.75), (1.0, 3.0)):
        found.append(rounds.play(*(({"w": [v]}, 1) for v in values))["w"].item())
        rounds.restart()

    # from 0: both pull by 1; from 1 + 1: by 1 and by -.25; from 2.375 + 1.375: by -1
    # and by -.75
    assert found == pytest.approx([1, 2.375, 2.875], rel=1e-15)


def test_centred_clipping_iterates_from_where_it_got() -> None:
    found = vector(CentredClipping(radius=1.0, iterations=3), [10.0], [1.5])

    # 1, then (1 + .5) / 2 further, then (1 - .25) / 2
    assert found.item() == pytest.approx(1 + 0.75 + 0.375)


@pytest.mark.parametrize(
    "rule", [NormBounding(most_norm=1.0), CentredClipping(radius=1.0)], ids=str
)
def test_an_infinitely_long_step_is_no_step(rule: Aggregation) -> None:
    honest = [one / 100 for one in honest_sites(5, 6)]

    found = vector(rule, *honest, np.full(50, 1e300))

    np.testing.assert_allclose(found, np.sum(honest, axis=0) / 7)
