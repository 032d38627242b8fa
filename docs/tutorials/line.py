"""Fits a curve to points that are spread over several sites."""

import numpy as np

import flare_core as flare

STEPS, LEARNING_RATE = 50, 0.2


def points(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x in ascending order, as rows (1, x, x²), and noisy y."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(-1, 1, number))
    y = 1 + x - 2 * x**2 + rng.normal(scale=0.1, size=number)
    return np.stack([np.ones(number), x, x**2], axis=1), y


def error(curve: np.ndarray, rows: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared error of a curve."""
    return float(np.mean((rows @ curve - y) ** 2))


site = flare.site()
rows, y = (np.array_split(whole, site.count)[site.index] for whole in points(0, 90))
test = points(1, 1000)

with flare.join(initial={"curve": np.zeros(3)}) as client:
    for this_round in client:
        curve = this_round.weights["curve"].copy()
        for _ in range(STEPS):
            curve -= LEARNING_RATE * 2 * rows.T @ (rows @ curve - y) / len(y)
        this_round.submit(
            {"curve": curve},
            num_examples=len(y),
            metrics={"error": error(curve, *test)},
            global_metrics={"error": error(this_round.weights["curve"], *test)},
        )
    client.report({"error": error(client.weights["curve"], *test)})
