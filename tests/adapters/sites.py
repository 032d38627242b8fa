"""What tests of all adapters share: sites in threads, and what a run has left."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flare_core import ModelState, Plan, Scaffold, TensorClass
from flare_core.application import ManifestEntry, Published, RoundPlayed, RoundRecord
from support import RunningServer

Array = npt.NDArray[Any]


def together(*acts: Callable[[], Any]) -> list[BaseException | None]:
    """Run one site a thread, and return what each raised."""
    with ThreadPoolExecutor(len(acts)) as pool:
        return [each.exception(100) for each in [pool.submit(act) for act in acts]]


def models(server: RunningServer) -> list[ModelState]:
    """Return the global models, from the initial to the final one."""
    return [one.weights for one in server.told(Published)]


def records(server: RunningServer) -> list[RoundRecord]:
    """Return the record of each round."""
    return [one.record for one in server.told(RoundPlayed)]


def played(server: RunningServer, *acts: Callable[[], Any]) -> list[ModelState]:
    """Run one site a thread, until the run is over; return the global models."""
    assert together(*acts) == [None] * len(acts)
    assert server.result().error == ""
    return models(server)


def proposed(weights: Mapping[str, Array], plan: Plan) -> ModelState:
    """Return what a site brings that has no framework: with SCAFFOLD, controls too."""
    if not isinstance(plan.local, Scaffold):
        return ModelState(weights)
    controls = {f"scaffold:{name}": np.zeros_like(weights[name]) for name in weights}
    classes = dict.fromkeys(controls, TensorClass.CONTROL)
    return ModelState({**weights, **controls}, classes=classes)


def manifest(file: Path) -> list[ManifestEntry]:
    """Return what has left the site of this file."""
    lines = (file.parent / f"manifest-{file.stem}.jsonl").read_bytes()
    return msgspec.json.Decoder(ManifestEntry).decode_lines(lines)


def assert_equal(found: Any, expected: Any) -> None:
    """Equal in every bit, through dictionaries and lists."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected
