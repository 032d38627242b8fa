"""One rank of a site that is sharded by FSDP2 and corrects its gradients."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from safetensors.numpy import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flare_adapters._torch._correction import GradientCorrection
from flare_adapters._torch._feddyn import Dynamic
from flare_adapters._torch._host import Host
from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._scaffold import Scaffold
from flare_adapters._torch._select import choose, control, members
from flare_adapters._torch._state import gather, scatter, trainable
from flare_core import ModelState

ROUNDS, SAVED_BEFORE = 4, 2
KINDS: dict[str, Callable[[], GradientCorrection]] = {
    "scaffold": Scaffold,
    "feddyn": lambda: Dynamic(0.5),
}


@final
class Site:
    """What a session does of a round, without a server.

    Args:
        make: Makes what corrects the gradients.
        shard: Whether the model is sharded.
    """

    def __init__(self, make: Callable[[], GradientCorrection], *, shard: bool) -> None:
        torch.manual_seed(0)
        self._make = make
        self._net, self._ranks = nn.Linear(3, 5), Ranks()
        if shard:
            fully_shard(self._net, mesh=init_device_mesh("cpu", (2,)))
        self._begin()

    def play(self, file: Path) -> dict[str, Any]:
        """Return what leaves in the last round.

        Args:
            file: Where a round is saved, for another correction to go on from.
        """
        left = self._play_round(0)
        for number in range(1, ROUNDS):
            if number == SAVED_BEFORE:
                self._correction.save(file)
                self._begin()
                self._correction.restore(file)
            self._load(left)
            left = self._play_round(number)
        return left

    def _begin(self) -> None:
        self._correction = self._make()
        self._found = members(self._net)
        self._chosen = choose(self._found, "all")
        parameters = trainable(self._found, self._chosen)
        for name, tensor in self._correction.beside(parameters).items():
            self._found[name], self._chosen[name] = control(tensor), name

    def _load(self, left: dict[str, Any]) -> None:
        """Load what another site would have made of it."""
        halves = {name: one * np.float32(0.5) for name, one in left.items()}
        scatter(ModelState(halves), self._found, self._chosen, self._ranks)

    def _play_round(self, number: int) -> dict[str, Any]:
        self._correction.round_started(number - 1)
        optimizer = torch.optim.SGD(self._net.parameters(), lr=0.005)
        inputs = torch.arange(6.0).reshape(2, 3)
        for _ in range(3):
            optimizer.zero_grad()
            self._net(inputs).square().sum().backward()
            self._correction.adjust(optimizer)
            optimizer.step()
            self._correction.stepped(optimizer)
        self._correction.round_ended(number)
        arrays = gather(self._found, self._chosen, self._ranks, Host())
        return {name: one.copy() for name, one in arrays.items()}


def main() -> None:
    """Play sharded and whole, and leave what came out of both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    store = (args.folder / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=args.rank, world_size=2)
    for kind, make in KINDS.items():
        for how in ("sharded", "whole"):
            site = Site(make, shard=how == "sharded")
            found = site.play(args.folder / f"{kind}-{how}-{args.rank}.pt")
            if args.rank == 0:
                save_file(found, args.folder / f"{kind}-{how}.safetensors")
    os._exit(0)  # else gloo may abort it, see ranks.py


if __name__ == "__main__":
    main()
