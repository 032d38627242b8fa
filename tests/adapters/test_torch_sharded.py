"""A site that is sharded corrects its gradients as a whole one, and goes on so."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters.scripts import sharded

pytestmark = pytest.mark.timeout(120)  # two processes import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left what came out."""
    folder = tmp_path_factory.mktemp("sharded")
    script = [sys.executable, sharded.__file__, "--folder", str(folder)]
    ranks = [subprocess.Popen([*script, "--rank", str(rank)]) for rank in range(2)]
    try:
        assert [one.wait(100) for one in ranks] == [0, 0]
    finally:
        for one in ranks:
            one.kill()
    return folder


@pytest.mark.parametrize("kind", ["scaffold", "feddyn"])
def test_a_sharded_site_is_corrected_as_a_whole_one(kind: str, folder: Path) -> None:
    sharded_one, whole = (
        load_file(folder / f"{kind}-{how}.safetensors") for how in ("sharded", "whole")
    )

    controls = {"scaffold:weight", "scaffold:bias"} if kind == "scaffold" else set()
    assert sharded_one.keys() == whole.keys() == {"weight", "bias"} | controls
    for name in whole:
        np.testing.assert_allclose(sharded_one[name], whole[name], rtol=1e-6)
        assert np.abs(whole[name]).max() > 1e-3
