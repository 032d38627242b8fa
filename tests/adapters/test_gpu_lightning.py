"""Lightning on a GPU: precisions, and sites that share the device."""

import hashlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapters.gpu import GPU, NEEDS_CUDA
from adapters.lightning_on_gpu import ON_GPU, Watch, play, precision
from adapters.lightning_runs import FEATURES, Log, Net, data, whole
from adapters.scripts.lightning_site import trainer
from adapters.sites import assert_equal, models
from flare_adapters.lightning import FLCallback, FLStrategy
from flare_core import FedProx, Plan, Schedule, Selection
from support import RunServer, SiteFile

pytestmark = [
    NEEDS_CUDA,
    pytest.mark.usefixtures("deterministic"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    "schedule", [Schedule(every_n_epochs=2), Schedule(every_n_steps=6)]
)
def test_one_site_is_the_plain_script_bit_for_bit(
    name: str, schedule: Schedule, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3, schedule=schedule))
    file = site_file("a", server.endpoint)

    def train(*callbacks: Callback, epochs: int) -> dict[str, Any]:
        L.seed_everything(3, verbose=False)
        net, log = Net(), Log()
        run = trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            log_every_n_steps=1,
            **ON_GPU,
            **precision(name),
        )
        run.loggers = [log]
        run.fit(net, DataLoader(data(), batch_size=8, shuffle=True), whole(data(1)))
        return {
            "weights": dict(net.state_dict()),
            "optimizer": run.optimizers[0].state_dict(),
            "precision": run.precision_plugin.state_dict(),
            "rates": net.rates,
            "logs": log.lines,
            "steps": (run.global_step, run.current_epoch),
            "random": torch.cuda.get_rng_state(),
        }

    length = 6
    plain = train(epochs=length)
    found = train(FLCallback(file), epochs=1)

    assert server.result().rounds == 3
    assert len(set(plain["rates"])) > 10
    assert_equal(found, plain)


@pytest.fixture(scope="module")
def sites() -> Iterator[ProcessPoolExecutor]:
    """A process for each of two sites."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.timeout(300)  # processes import the framework
def test_two_sites_on_one_gpu_end_with_the_same_model_twice(
    name: str, run_server: RunServer, site_file: SiteFile, sites: ProcessPoolExecutor
) -> None:
    def play_two() -> str:
        server = run_server(Plan(rounds=4, selection=Selection(sites=2)))
        files = [site_file(n, server.endpoint, i, 2) for i, n in enumerate("ab")]
        found = list(sites.map(play, files, (0, 1), (name, name)))

        blake3, final = server.result().blake3, models(server)[-1]
        weights = b"".join(final[one].tobytes() for one in sorted(final))
        for left in found:
            assert left.weights == hashlib.blake2b(weights).hexdigest()
            assert len(left.places) == 5
            assert all(place == left.places[0] for place in left.places)
            assert {device for device, _ in left.places[0]} == {GPU}
        return blake3

    assert play_two() == play_two() != ""


class Still(L.LightningModule):
    """Draws no numbers, so that trainings differ by what a test changes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 1)
        )

    def training_step(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("fused", [False, True])
def test_fedprox_pulls_as_hard_whoever_unscales_the_gradients(
    fused: bool,  # noqa: FBT001 - a parameter of the test
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    class Pulled(Still):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, fused=fused)

    def weights(mu: float, **settings: Any) -> Tensor:
        plan = Plan(rounds=1, local=FedProx(mu=mu))
        file = site_file("a", run_server(plan).endpoint)
        net, watch = Pulled(0), Watch()
        run = trainer(max_epochs=1, callbacks=[FLCallback(file), watch], **settings)
        run.fit(net, DataLoader(data(0, 64), batch_size=4))
        return torch.cat([one.flatten() for one in watch.weights.values()])

    exact = weights(2.0, **ON_GPU)

    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    mixed = {"plugins": MixedPrecision("16-mixed", "cuda", scaler)}
    near = (weights(2.0, **ON_GPU, **mixed) - exact).norm()
    far = (weights(0.0, **ON_GPU) - exact).norm()
    assert near < far / 10


def test_the_lightning_strategy_takes_the_gpu(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    strategy = FLStrategy("single_device", site=site_file("a", server.endpoint))
    watch = Watch()

    run = trainer(
        accelerator="auto", strategy=strategy, max_epochs=1, callbacks=[watch]
    )
    run.fit(Still(0), whole(data()))

    assert server.result().rounds == 2
    assert {device for device, _ in watch.places[-1]} == {GPU}
