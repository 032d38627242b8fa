"""The server's part for Flower: its FedAvg, with no evaluation."""

import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play all rounds."""
    config = context.run_config
    Path(config["folder"], "server.pid").write_text(str(os.getpid()))
    rng = np.random.default_rng(0)
    weights = {
        f"tensor_{index}": rng.random((config["rows"], config["columns"]), np.float32)
        for index in range(config["tensors"])
    }
    weights["tensor_0"][0, 0] = 0
    initial = ArrayRecord({name: Array(array) for name, array in weights.items()})
    del weights
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=config["sites"],
        min_available_nodes=config["sites"],
    )
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=config["rounds"])
