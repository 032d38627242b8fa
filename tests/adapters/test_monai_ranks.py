"""A site with several ranks that trains with MONAI."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from adapters.scripts import monai_ranks as script
from adapters.scripts.monai_ranks import NUM_ROWS, RATE, ROUNDS, Rows, net
from adapters.sites import records
from flare_core import Plan
from support import RunServer, SiteFile


@pytest.mark.timeout(200)  # two processes import MONAI
def test_the_ranks_of_a_site_equal_one(
    run_server: RunServer, site_file: SiteFile, tmp_path: Path
) -> None:
    server = run_server(Plan(rounds=ROUNDS))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    file = site_file("a", server.endpoint, patience_s=100)

    done = subprocess.run(
        [sys.executable, *torchrun, script.__file__, str(file), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    expected = _alone()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, weights in expected.items():
            torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-6)
    assert [one.num_examples for one in records(server)] == [NUM_ROWS] * ROUNDS


def _alone() -> dict[str, torch.Tensor]:
    """Return what one rank without a federation comes to."""
    network = net()
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    batch = default_collate([Rows()[index] for index in range(NUM_ROWS)])
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
    return network.state_dict()
