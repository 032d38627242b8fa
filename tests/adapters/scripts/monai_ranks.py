"""One rank of a site that trains with MONAI under torchrun; a step a round.

monai_ranks.py SITE_FILE FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from monai.engines import SupervisedTrainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from flare_adapters.monai import FLHandler

ROUNDS, NUM_ROWS, RATE = 3, 16, 0.1


class Rows(Dataset[dict[str, torch.Tensor]]):
    """What the site has, as MONAI wants it."""

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.linspace(-1, 1, NUM_ROWS * 4).reshape(NUM_ROWS, 4)[index]
        return {"image": row, "label": row.square().sum().reshape(1)}


def net() -> nn.Module:
    """Return what is trained."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def main(site: str, folder: str) -> None:
    """Train as one of the ranks."""
    dist.init_process_group("gloo")
    network = nn.parallel.DistributedDataParallel(net())
    sampler = DistributedSampler(Rows(), shuffle=False)
    per_rank = NUM_ROWS // dist.get_world_size()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=ROUNDS,
        train_data_loader=DataLoader(Rows(), batch_size=per_rank, sampler=sampler),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), RATE),
        loss_function=nn.MSELoss(),
        train_handlers=[FLHandler(site)],
    )
    trainer.run()
    torch.save(network.module.state_dict(), Path(folder, f"{dist.get_rank()}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
