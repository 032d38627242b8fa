"""What comes of the updates of one round, by the server's own code."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from averaging import Averaging
from flare_core import Aggregation, ModelState
from flare_core._model import Array
from flare_core.federation import Each, FedAvg

Weights: TypeAlias = Mapping[str, npt.ArrayLike]
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=20)  # each of them writes files


def combined(
    rule: Aggregation,
    *updates: tuple[Weights, int],
    first: Weights | None = None,
    each: Each = map,
) -> ModelState:
    """Return what comes out of one round that starts from zeros, or another model."""
    zeros = {name: np.zeros_like(one) for name, one in updates[0][0].items()}
    with tempfile.TemporaryDirectory() as folder:
        rounds = Averaging(Path(folder), FedAvg(), first or zeros, each, rule=rule)
        return rounds.play(*updates)


def vector(rule: Aggregation, *values: npt.ArrayLike) -> Array:
    """Return what comes out of one tensor of each site, of one example each."""
    wide = [np.asarray(one, np.float64) for one in values]
    return combined(rule, *(({"w": one}, 1) for one in wide))["w"]


def honest_sites(seed: int, num_sites: int, size: int = 50) -> list[Array]:
    """Return the weights of sites that are about one point."""
    rng = np.random.default_rng(seed)
    return list(rng.normal(size=(num_sites, size)) + rng.normal(size=size))
