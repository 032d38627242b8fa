"""How many examples a batch holds, and where its loss is."""

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from adapters.ignite_runs import engine, linear, sgd
from adapters.sites import records
from flare_adapters._torch import num_examples
from flare_adapters.monai import FLHandler
from flare_adapters.monai._loop import loss_of
from flare_core import Plan
from support import RunServer, SiteFile

IMAGES = torch.zeros(5, 1, 8, 8)
LABELS = torch.zeros(5)
SAMPLE = {"image": torch.zeros(1, 8, 8), "label": 3}


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (IMAGES, 5),
        ((IMAGES, LABELS), 5),
        ([IMAGES, LABELS], 5),
        ({"image": IMAGES, "label": LABELS}, 5),
        ({"path": ["a", "b"], "image": IMAGES}, 5),
        ({"scale": torch.tensor(2.0), "image": IMAGES}, 5),
        ({"image": {"left": IMAGES, "right": IMAGES}}, 5),
        (({"image": IMAGES}, LABELS), 5),
        ([[IMAGES, IMAGES], [LABELS, LABELS]], 5),
        (np.zeros((5, 2)), 5),
        ([SAMPLE, SAMPLE, SAMPLE], 3),  # not collated, or decollated
        ([[SAMPLE, SAMPLE], [SAMPLE]], 3),  # crops of two images, not collated
        (None, None),
        ([], None),
        (7, None),
        ("scan.nii", None),
    ],
)
def test_examples_are_counted_in(batch: Any, expected: int | None) -> None:
    assert num_examples(batch) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (0.5, 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([0.5]), 0.5),
        ({"loss": torch.tensor(0.5), "pred": IMAGES}, 0.5),
        ([{"loss": torch.tensor(0.5)}, {"loss": torch.tensor(0.5)}], 0.5),
        ({"g_loss": 0.5}, None),
        ((IMAGES, LABELS), None),
        (IMAGES, None),
        ([], None),
        (None, None),
    ],
)
def test_the_loss_is_found_in(output: Any, expected: float | None) -> None:
    assert loss_of(output) == expected


def test_batches_that_do_not_tell_count_as_one_and_the_log_says_so(
    run_server: RunServer, site_file: SiteFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server(Plan(rounds=1))
    network = linear()
    optimizer = sgd(network)
    inner = engine(network, optimizer)._process_function

    def step(engine: Engine, batch: Any) -> Any:
        del batch  # a number; the engine makes its data itself
        return inner(engine, (torch.ones(3, 4), torch.ones(3, 1)))

    trainer = Engine(step)
    file = site_file("a", server.endpoint)
    FLHandler(file, network=network, optimizer=optimizer).attach(trainer)
    trainer.run(range(6))

    assert records(server)[0].num_examples == 6
    assert caplog.text.count("batch (int): each counts as one") == 1
