"""Ignite and MONAI on a GPU: mixed precision, and sites that share the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from monai.data import DataLoader as DictLoader
from monai.data import Dataset
from monai.engines import SupervisedTrainer
from torch import nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from adapters.gpu import GPU, NEEDS_CUDA, on_host, places
from adapters.ignite_runs import FEATURES, net, rows
from adapters.sites import assert_equal, models, together
from flare_adapters.monai import FLHandler
from flare_core import FedProx, Plan, Schedule, Selection
from support import RunServer, SiteFile

pytestmark = [
    NEEDS_CUDA,
    pytest.mark.usefixtures("deterministic"),
    # MONAI and Ignite call torch.cuda.amp by its old name
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LONG = 100
"""Epochs that a plain script would train, if it were not stopped."""


def scaler() -> GradScaler:
    """Return one whose scale changes all the time."""
    return GradScaler("cuda", init_scale=2.0**20, growth_interval=2)


def order() -> torch.Generator:
    """Return what shuffles the data of one site: the process may have two."""
    return torch.Generator().manual_seed(5)


def of_ignite(
    network: nn.Module, optimizer: Any, *, scaler: GradScaler | None
) -> tuple[Engine, Callable[[], object]]:
    """Return an engine by Ignite's own factory, and what starts it."""
    trainer = create_supervised_trainer(
        network,
        optimizer,
        nn.functional.mse_loss,
        device=GPU,
        amp_mode="amp" if scaler else None,
        scaler=scaler or False,
    )
    loader = DataLoader(rows(), batch_size=8, shuffle=True, generator=order())
    return trainer, lambda: trainer.run(loader, max_epochs=LONG)


def of_monai(
    network: nn.Module, optimizer: Any, *, scaler: GradScaler | None
) -> tuple[Engine, Callable[[], object]]:
    """Return MONAI's engine, and what starts it; in bfloat16 without a scaler."""
    images, labels = rows().tensors
    found = zip(images, labels, strict=True)
    samples = Dataset([{"image": image, "label": label} for image, label in found])
    trainer = SupervisedTrainer(
        torch.device(GPU),
        LONG,
        DictLoader(samples, batch_size=8, shuffle=True, generator=order()),
        network,
        optimizer,
        nn.MSELoss(),
        amp=True,
        amp_kwargs={"dtype": torch.float16 if scaler else torch.bfloat16},
    )
    trainer.scaler = scaler
    return trainer, lambda: trainer.run()  # noqa: PLW0108 - attaching wraps `run`


ENGINES = {
    "ignite": (of_ignite, None),
    "ignite, float16": (of_ignite, scaler),
    "monai, bfloat16": (of_monai, None),
    "monai, float16": (of_monai, scaler),
}


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    "schedule", [Schedule(every_n_epochs=2), Schedule(every_n_steps=2)]
)
def test_one_site_is_the_plain_script_bit_for_bit(
    kind: str, schedule: Schedule, run_server: RunServer, site_file: SiteFile
) -> None:
    make, scaler = ENGINES[kind]
    server = run_server(Plan(rounds=4, schedule=schedule))
    file = site_file("a", server.endpoint)

    def train(file: Path | None, iterations: int | None) -> dict[str, Any]:
        network = net().to(GPU)
        torch.manual_seed(3)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        scales = scaler() if scaler else None
        engine, run = make(network, optimizer, scaler=scales)
        seen: set[tuple[str, int]] = places(network)
        if file is not None:
            FLHandler(file, network=network, optimizer=optimizer).attach(engine)
        elif iterations is not None:
            last = Events.ITERATION_COMPLETED(once=iterations)
            engine.add_event_handler(last, engine.terminate)
        run()
        assert places(network) == seen
        return {
            "iteration": engine.state.iteration,
            "weights": on_host(network.state_dict()),
            "optimizer": on_host(optimizer.state_dict()),
            "scaler": scales.state_dict() if scales else {},
            "random": torch.cuda.get_rng_state(),
        }

    found = train(file, None)
    plain = train(None, found["iteration"])

    assert server.result().rounds == 4
    assert_equal(found, plain)


@pytest.mark.parametrize("kind", ENGINES)
def test_two_sites_on_one_gpu_end_with_the_same_model_twice(
    kind: str, run_server: RunServer, site_file: SiteFile
) -> None:
    make, scaler = ENGINES[kind]

    def play() -> str:
        server = run_server(Plan(rounds=4, selection=Selection(sites=2)))
        networks = []
        acts = []
        for number, name in enumerate("ab"):
            torch.manual_seed(number)
            network = nn.Sequential(
                nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.Linear(64, 1)
            ).to(GPU)
            optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
            engine, run = make(network, optimizer, scaler=scaler and scaler())
            file = site_file(name, server.endpoint, number, 2)
            FLHandler(file, network=network, optimizer=optimizer).attach(engine)
            networks.append(network)
            acts.append(run)

        assert together(*acts) == [None, None]
        final = models(server)[-1]
        for network in networks:
            assert {device for device, _ in places(network)} == {GPU}
            assert_equal(
                on_host(dict(network.state_dict())),
                {name: torch.from_numpy(final[name].copy()) for name in final},
            )
        return server.result().blake3

    assert play() == play() != ""


@pytest.mark.parametrize("fused", [False, True])
def test_fedprox_pulls_as_hard_whoever_unscales_the_gradients(
    fused: bool,  # noqa: FBT001 - a parameter of the test
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    def weights(mu: float, scaler: GradScaler | None) -> torch.Tensor:
        plan = Plan(rounds=2, local=FedProx(mu=mu))
        file = site_file("a", run_server(plan).endpoint)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(FEATURES, 64), nn.Linear(64, 1)).to(GPU)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, fused=fused)
        engine, run = of_ignite(network, optimizer, scaler=scaler)
        FLHandler(file, network=network, optimizer=optimizer).attach(engine)
        run()
        return torch.cat([one.detach().flatten() for one in network.parameters()])

    exact = weights(4.0, None)

    near = (weights(4.0, GradScaler("cuda", init_scale=2.0**10)) - exact).norm()
    far = (weights(0.0, None) - exact).norm()
    assert near < far / 10
