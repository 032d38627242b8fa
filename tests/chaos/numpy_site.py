"""A plain loop of a site: what it trains depends on the site, the round and the model.

Run with the number of floats in its model as the only argument.
"""

import sys

import numpy as np

import flare_core as flare

STEPS = 5


def main() -> None:
    """Play all rounds."""
    size = int(sys.argv[1])
    name = flare.site().name
    initial = {"w": np.linspace(-1, 1, size, dtype=np.float32)}
    with flare.join(initial) as client:
        for current in client:
            rng = np.random.default_rng([current.number, *name.encode()])
            w = current.weights["w"].copy()
            for _ in range(STEPS):
                w -= np.float32(0.05) * (w - rng.standard_normal(size, np.float32))
            loss = float(np.square(w).mean())
            n = 10 + len(name) + current.number
            current.submit({"w": w}, num_examples=n, metrics={"loss": loss})


main()
