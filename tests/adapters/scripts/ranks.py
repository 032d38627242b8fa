"""One rank of a site whose first rank fails, for tests that need processes."""

import argparse
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from flare_adapters._torch._host import Host
from flare_adapters._torch._ranks import Ranks
from flare_adapters._torch._select import members
from flare_adapters._torch._state import gather, scatter
from flare_core import ConfigurationError, ModelState


class OddError(Exception):
    """Holds what no message can carry."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        return "odd"


class Lazy(nn.Module):
    """A weight without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, device="meta"))


def failing(error: BaseException) -> None:
    """Fail."""
    raise error


def main() -> None:
    """Note what each failure is on this rank, and that it goes on after it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dist.init_process_group(
        "gloo", init_method=args.store.as_uri(), rank=args.rank, world_size=2
    )
    ranks = Ranks()
    found, chosen = members(nn.Linear(2, 1, bias=False)), {"weight": "weight"}
    lazy = members(Lazy())
    acts: dict[str, Callable[[], object]] = {
        "odd": lambda: ranks.from_first(lambda: failing(OddError())),
        "ours": lambda: ranks.from_first(lambda: failing(ConfigurationError("no"))),
        "stop": lambda: ranks.from_first(lambda: failing(KeyboardInterrupt("stop"))),
        "load": lambda: scatter(ModelState({}), found, chosen, ranks),
        "read": lambda: gather(lazy, chosen, ranks, Host()),
    }
    notes = {}
    for name, act in acts.items():
        try:
            act()
        except BaseException as exc:  # noqa: BLE001 - to be noted
            notes[name] = f"{type(exc).__name__}: {exc}"
    mean = ranks.mean({"loss": float(args.rank)} if args.rank == 0 else {})
    args.out.write_text(json.dumps(notes | {"mean": mean["loss"]}))
    # At the interpreter's own end a thread of gloo that lets go of a tensor is stopped
    # in the middle of a C++ function, which aborts the process (Python before 3.14).
    os._exit(0)


if __name__ == "__main__":
    main()
