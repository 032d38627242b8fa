"""A federation of processes in which one means ill."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flare_core.management import plan_of, simulate
from simulated import WriteScript

_GOAL = 10.0
_ONE_MEANS_ILL = f"""
with flare.join({{"w": np.zeros(1000, np.float32)}}) as run:
    for round in run:
        rng = np.random.default_rng([round.number, me.index])
        w = round.weights["w"]
        w = w + ({_GOAL} - w) / 2 + rng.normal(size=w.shape) / 100
        lies = me.index == 2
        w = np.full_like(w, -1e9) if lies else w
        round.submit(
            {{"w": w.astype(np.float32)}}, num_examples=2**50 if lies else 100
        )
"""
_RULES = [
    "aggregation.name=median",
    "aggregation.name=trimmed_mean",
    "aggregation.name=krum",
    "aggregation.name=geometric_median",
    "aggregation={name='centred_clipping', settings={radius=200}}",
]


def _furthest(script: Path, folder: Path, *settings: str) -> float:
    """Return how far from the goal of the honest sites the final model is."""
    plan = plan_of(None, sites=5, rounds=6, settings=settings)
    simulate(script, plan=plan, run_dir=folder)
    return float(np.abs(load_file(folder / "global.safetensors")["w"] - _GOAL).max())


@pytest.mark.parametrize("rule", _RULES)
def test_a_site_that_means_ill_does_not_keep_the_others_from_their_goal(
    rule: str, script: WriteScript, tmp_path: Path
) -> None:
    assert _furthest(script(_ONE_MEANS_ILL), tmp_path / "run", rule) < _GOAL / 2


def test_it_does_where_updates_are_averaged(
    script: WriteScript, tmp_path: Path
) -> None:
    assert _furthest(script(_ONE_MEANS_ILL), tmp_path / "run") > 1e6
