"""A site of ours: adds its number to the global model in each round."""

import argparse
import time
from pathlib import Path

import numpy as np

import flare_core as flare


def main() -> None:
    """Take part in the run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    for name in ("sites", "rounds", "tensors", "rows", "columns"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    site = flare.site()
    number = np.float32(site.index + 1)
    notes = options.folder / f"{site.name}.rounds"
    rng = np.random.default_rng(0)
    initial = {
        f"tensor_{index}": rng.random((options.rows, options.columns), np.float32)
        for index in range(options.tensors)
    }
    initial["tensor_0"][0, 0] = 0
    with flare.join(initial) as client:
        for current in client:
            weights = current.weights
            with notes.open("a") as file:
                element = weights["tensor_0"][0, 0]
                file.write(f"{current.number} {time.monotonic_ns()} {element}\n")
            trained = {name: array + number for name, array in weights.items()}
            current.submit(trained, num_examples=1)


if __name__ == "__main__":
    main()
