"""The Lightning callback against the plain script, with the real framework."""

from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import msgspec
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapters.lightning_runs import FEATURES, Linear, Log, Net, data, fit, frozen, whole
from adapters.scripts.lightning_site import trainer
from adapters.sites import assert_equal, models, records, together
from flare_adapters.lightning import FLCallback
from flare_core import (
    ConfigurationError,
    FedProx,
    Local,
    Plain,
    Plan,
    Schedule,
    Selection,
)
from flare_core.application import (
    ManifestEntry,
    Published,
    SiteJoined,
)
from support import RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


@pytest.mark.parametrize(
    "schedule", [Schedule(every_n_epochs=2), Schedule(every_n_steps=6)]
)
def test_one_site_is_the_plain_script_bit_for_bit(
    schedule: Schedule, run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3, schedule=schedule))
    file = site_file("a", server.endpoint)

    def train(*callbacks: Callback, epochs: int) -> tuple[Any, ...]:
        L.seed_everything(3, verbose=False)
        net, log = Net(), Log()
        loader = DataLoader(data(), batch_size=4, shuffle=True)
        run = trainer(
            max_epochs=epochs,
            callbacks=list(callbacks),
            accumulate_grad_batches=2,
            log_every_n_steps=1,
        )
        run.loggers = [log]
        run.fit(net, loader, whole(data(1)))
        return net, run, log

    plain_net, plain, plain_log = train(epochs=6)
    net, run, log = train(FLCallback(file), epochs=1)

    assert server.result().rounds == 3
    assert_equal(dict(net.state_dict()), dict(plain_net.state_dict()))
    assert_equal(
        run.optimizers[0].state_dict(),
        plain.optimizers[0].state_dict(),
    )
    assert net.rates == plain_net.rates
    assert len(set(net.rates)) > 10
    assert (run.global_step, run.current_epoch) == (18, 6)
    assert (plain.global_step, plain.current_epoch) == (18, 6)
    assert log.lines == plain_log.lines
    assert_equal(dict(run.callback_metrics), dict(plain.callback_metrics))


def test_two_sites_are_centralised_gradient_descent(pair: Any) -> None:
    server, files = pair(Plan(rounds=3, selection=Selection(sites=2)))
    parts = [data(0, 24), data(1, 40)]

    raised = together(
        *(
            lambda i=i: fit(Linear(value=i), whole(parts[i]), FLCallback(files[i]))
            for i in range(2)
        )
    )

    assert raised == [None, None]
    net = Linear(value=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=net.rate)
    batch = [torch.cat(both) for both in zip(*(p.tensors for p in parts), strict=True)]
    for _ in range(3):
        optimizer.zero_grad()
        net.training_step(batch).backward()
        optimizer.step()
    for name, value in models(server)[-1].items():
        torch.testing.assert_close(
            torch.from_numpy(value.copy()), net.state_dict()[name], rtol=0, atol=1e-6
        )
    assert records(server)[0].num_examples == 64


def test_validation_and_checkpoints_are_of_the_global_model(
    pair: Any, tmp_path: Path
) -> None:
    server, files = pair()
    saved = ModelCheckpoint(tmp_path / "best", monitor="val_weight", save_top_k=-1)
    weights: list[float] = []

    class Watch(Callback):
        def on_validation_end(self, trainer: L.Trainer, net: Any) -> None:
            if not trainer.sanity_checking:
                weights.append(float(net.layer.weight.detach().sum()))

    together(
        lambda: fit(
            Linear(value=0),
            whole(data(0)),
            FLCallback(files[0]),
            saved,
            Watch(),
            enable_checkpointing=True,
        ),
        lambda: fit(Linear(value=1), whole(data(1)), FLCallback(files[1])),
    )

    models = [
        one.weights["layer.weight"].sum()
        for one in server.events
        if isinstance(one, Published)
    ]
    assert weights == pytest.approx(models[1:])
    checkpoint = torch.load(saved.best_model_path, weights_only=True)["state_dict"]
    assert float(checkpoint["layer.weight"].sum()) == pytest.approx(min(models[1:]))
    site = records(server)[1].sites["a"]
    assert site.global_metrics == {"val_weight": pytest.approx(models[1])}
    assert server.result().sites["a"] == {"val_weight": pytest.approx(models[2])}


def test_fedprox_pulls_each_step_towards_the_global_model(
    run_server: RunServer, site_file: SiteFile
) -> None:
    mu, rate = 0.5, 0.1

    def weights(local: Local) -> Tensor:
        server = run_server(Plan(rounds=1, local=local))
        loader = DataLoader(data(), batch_size=11)
        net = Linear(rate=rate)
        fit(net, loader, FLCallback(site_file("a", server.endpoint)))
        return net.layer.weight.detach()

    batches = list(DataLoader(data(), batch_size=11))
    by_hand = Linear(rate=rate)
    anchors = [one.detach().clone() for one in by_hand.parameters()]
    for batch in batches:
        by_hand.zero_grad()
        by_hand.training_step(batch).backward()
        for one, anchor in zip(by_hand.parameters(), anchors, strict=True):
            assert one.grad is not None
            one.data -= rate * (one.grad + mu * (one.detach() - anchor))

    pulled = weights(FedProx(mu=mu))

    torch.testing.assert_close(pulled, by_hand.layer.weight.detach())
    assert not torch.allclose(pulled, weights(Plain()), atol=1e-4)


def test_batch_counters_are_kept_as_integers(pair: Any) -> None:
    server, files = pair()
    loaders = [DataLoader(data(0), batch_size=4), DataLoader(data(1), batch_size=8)]

    together(
        lambda: fit(Net(), loaders[0], FLCallback(files[0])),
        lambda: fit(Net(), loaders[1], FLCallback(files[1])),
    )

    counter = models(server)[-1]["body.1.num_batches_tracked"]
    assert (int(counter), counter.dtype.name) == (12, "int64")


def test_only_trainable_tensors_leave_a_frozen_backbone(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)

    fit(frozen(), whole(data()), FLCallback(file))

    lines = (file.parent / "manifest-a.jsonl").read_bytes()
    left = msgspec.json.Decoder(ManifestEntry).decode_lines(lines)
    assert {one.name for one in left} == {"head.1.weight", "head.1.bias"}
    joined = server.told(SiteJoined)[0]
    assert {one.name for one in joined.stays} >= {"body.0.weight", "body.1.weight"}


class Wide(L.LightningModule):
    """A frozen base and a head big enough for its size to show."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, 256).requires_grad_(requires_grad=False)
        self.head = nn.Linear(256, 256)

    def training_step(self, batch: Any) -> Tensor:
        output: Tensor = self.head(self.base(batch[0]))
        return output.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


def test_a_round_costs_little_more_than_what_is_trained(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    net = Wide()

    trainer(max_epochs=1, callbacks=[FLCallback(site_file("a", server.endpoint))]).fit(
        net, whole(data())
    )

    trained = sum(one.numel() * 4 for one in net.head.parameters())
    record = records(server)[0]
    assert trained <= record.bytes_up <= 1.02 * trained
    assert trained <= record.bytes_down <= 1.02 * trained


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("all", {"body.0", "body.1", "head.1"}),
        ("no_batchnorm", {"body.0", "head.1"}),
        ("head.*", {"head.1"}),
        (["*", "!body.1.*"], {"body.0", "head.1"}),
    ],
)
def test_select_says_which_layers_travel(
    select: Any, expected: set[str], run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    file = site_file("a", server.endpoint)

    fit(Net(), whole(data()), FLCallback(file, select=select))

    layers = {name.rpartition(".")[0] for name in models(server)[-1]}
    assert layers == expected


def test_a_selection_of_nothing_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    callback = FLCallback(site_file("a", server.endpoint), select="haed.*")

    with pytest.raises(ConfigurationError, match=r"'haed\.\*' leaves nothing"):
        fit(Net(), whole(data()), callback)
