"""A client of NVIDIA FLARE: adds its number to the global model in each round."""

import argparse
import time
from pathlib import Path

import numpy as np
import nvflare.client as flare


def main() -> None:
    """Take part in the job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    flare.init()
    site = flare.get_site_name()
    number = np.float32(site.removeprefix("site-"))
    notes = options.folder / f"{site}.rounds"
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        weights = received.params
        with notes.open("a") as file:
            element = weights["tensor_0"][0, 0]
            file.write(f"{received.current_round} {time.monotonic_ns()} {element}\n")
        trained = {name: array + number for name, array in weights.items()}
        flare.send(
            flare.FLModel(
                params=trained,
                params_type=flare.ParamsType.FULL,
                meta={"NUM_STEPS_CURRENT_ROUND": 1},
            )
        )


if __name__ == "__main__":
    main()
