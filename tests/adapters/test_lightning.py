"""The Lightning callback against the plain script, with the real framework."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - as its users write it
import msgspec
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from adapters.scripts.lightning_site import trainer
from flare_adapters.lightning import FLCallback
from flare_core import (
    BaseModelError,
    ConfigurationError,
    HorizonError,
    LayoutError,
    Plan,
    RunAbortedError,
    Schedule,
    Selection,
    StrategySettings,
    UpdateError,
)
from flare_core.application import (
    ManifestEntry,
    Published,
    RoundPlayed,
    SiteJoined,
    SiteLeft,
)
from flare_core.communication import unpack
from support import RunningServer, RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]

FEATURES = 4


class Net(L.LightningModule):
    """Dropout, BatchNorm, Adam and a schedule as long as the fit says."""

    def __init__(self, *, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.Tanh()
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 1))
        self.rates: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.head(self.body(features)), target)

    def training_step(self, batch: Any) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch))

    def on_train_batch_end(self, *_: Any) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(
            [one for one in self.parameters() if one.requires_grad], lr=0.01
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Linear(L.LightningModule):
    """One layer and plain SGD: what a step does can be told by hand."""

    def __init__(self, *, value: float = 0.0, rate: float = 0.1) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 1)
        self.rate = rate
        nn.init.constant_(self.layer.weight, value)
        nn.init.constant_(self.layer.bias, value)

    def training_step(self, batch: Any) -> Tensor:
        features, target = batch
        return nn.functional.mse_loss(self.layer(features), target)

    def validation_step(self, batch: Any) -> None:
        self.log("val_weight", self.layer.weight.sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Log(Logger):
    """Keeps what Lightning logs."""

    name = version = "log"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""


def data(seed: int = 0, num: int = 22) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, FEATURES, generator=generator)
    return TensorDataset(features, features.sum(1, keepdim=True) + seed)


def whole(rows: TensorDataset) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=len(rows))


def fit(
    net: L.LightningModule,
    loader: DataLoader[Any],
    *callbacks: Callback,
    **settings: Any,
) -> L.Trainer:
    run = trainer(callbacks=list(callbacks), **({"max_epochs": 1} | settings))
    run.fit(net, loader, loader)
    return run


def together(*acts: Callable[[], Any]) -> list[BaseException | None]:
    """Run one site a thread, and return what each raised."""
    with ThreadPoolExecutor(len(acts)) as pool:
        return [each.exception(100) for each in [pool.submit(act) for act in acts]]


def published(server: RunningServer) -> dict[str, Any]:
    """The last global model."""
    frames = [one.frames for one in server.events if isinstance(one, Published)][-1]
    return dict(unpack(frames))


def records(server: RunningServer) -> list[Any]:
    return [one.record for one in server.events if isinstance(one, RoundPlayed)]


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


def assert_equal(found: Any, expected: Any) -> None:
    """Equal in every bit, through dictionaries and lists."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


@pytest.fixture
def pair(
    run_server: RunServer, site_file: SiteFile
) -> Callable[..., tuple[RunningServer, list[Path]]]:
    """Start a server for two sites."""

    def start(plan: Plan | None = None) -> tuple[RunningServer, list[Path]]:
        server = run_server(plan or Plan(rounds=2, selection=Selection(sites=2)))
        files = [site_file(n, server.endpoint, i, 2) for i, n in enumerate("ab")]
        return server, files

    return start


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
    for name, value in published(server).items():
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
        dict(unpack(one.frames))["layer.weight"].sum()
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

    def weights(strategy: StrategySettings) -> Tensor:
        server = run_server(Plan(rounds=1, strategy=strategy))
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

    pulled = weights(StrategySettings(mu=mu))

    torch.testing.assert_close(pulled, by_hand.layer.weight.detach())
    assert not torch.allclose(pulled, weights(StrategySettings()), atol=1e-4)


def test_early_stopping_tells_the_server_instead_of_hanging_it(pair: Any) -> None:
    _, files = pair(Plan(rounds=9, selection=Selection(sites=2)))
    impatient = EarlyStopping("val_weight", mode="min", patience=1, min_delta=1e6)

    raised = together(
        lambda: fit(Linear(), whole(data(0)), FLCallback(files[0]), impatient),
        lambda: fit(Linear(), whole(data(1)), FLCallback(files[1])),
    )

    assert raised[0] is None
    assert isinstance(raised[1], RunAbortedError)
    assert "site 'a' left: its fit was stopped (EarlyStopping" in str(raised[1])
    assert "selection.quorum" in str(raised[1])


def test_a_run_with_a_quorum_goes_on_without_the_site_that_stopped(
    pair: Any,
) -> None:
    plan = Plan(rounds=4, selection=Selection(sites=2, quorum=1))
    server, files = pair(plan)

    raised = together(
        lambda: fit(
            Linear(),
            whole(data(0)),
            FLCallback(files[0]),
            EarlyStopping("val_weight", mode="min", patience=1, min_delta=1e6),
        ),
        lambda: fit(Linear(), whole(data(1)), FLCallback(files[1])),
    )

    assert raised == [None, None]
    assert server.result().rounds == 4
    assert list(records(server)[-1].sites) == ["b"]


def test_a_training_step_that_breaks_is_told_to_the_others(pair: Any) -> None:
    _, files = pair()

    class Broken(Linear):
        def training_step(self, batch: Any) -> Tensor:
            msg = "no such organ"
            raise RuntimeError(msg)

    raised = together(
        lambda: fit(Linear(), whole(data(0)), FLCallback(files[0])),
        lambda: fit(Broken(), whole(data(1)), FLCallback(files[1])),
    )

    assert "site 'b' failed: RuntimeError: no such organ" in str(raised[0])
    assert str(raised[1]) == "no such organ"


def test_a_fit_shorter_than_the_run_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=20))

    with pytest.raises(HorizonError, match=r"plays 1 rounds.*the run has 20"):
        fit(
            Linear(),
            whole(data()),
            FLCallback(site_file("a", server.endpoint)),
            fast_dev_run=True,
        )


def test_a_nan_is_refused_by_name(run_server: RunServer, site_file: SiteFile) -> None:
    server = run_server(Plan(rounds=1))
    callback = FLCallback(site_file("a", server.endpoint))

    with pytest.raises(UpdateError, match=r"site 'a': tensor 'layer.*finite.*NaN"):
        fit(Linear(rate=float("nan")), whole(data()), callback)


def test_a_layout_that_differs_names_the_tensor_and_both_shapes(pair: Any) -> None:
    _, files = pair()

    raised = together(
        lambda: fit(Net(width=8), whole(data(0)), FLCallback(files[0])),
        lambda: fit(Net(width=6), whole(data(1)), FLCallback(files[1])),
    )

    assert isinstance(raised[0], RunAbortedError)
    assert isinstance(raised[1], LayoutError)
    for error in raised:
        assert "tensor 'body.0.bias'" in str(error)
        assert "F32 (8,) as at site 'a', got F32 (6,)" in str(error)


def frozen(seed: int = 0) -> Net:
    net = Net(seed=seed)
    net.body.requires_grad_(requires_grad=False)
    return net


def test_only_trainable_tensors_leave_a_frozen_backbone(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))
    file = site_file("a", server.endpoint)

    fit(frozen(), whole(data()), FLCallback(file))

    lines = (file.parent / "manifest-a.jsonl").read_bytes()
    left = msgspec.json.Decoder(ManifestEntry).decode_lines(lines)
    assert {one.name for one in left} == {"head.1.weight", "head.1.bias"}
    joined = next(one for one in server.events if isinstance(one, SiteJoined))
    assert {one.name for one in joined.stays} >= {"body.0.weight", "body.1.weight"}


def test_another_frozen_base_is_refused(pair: Any) -> None:
    _, files = pair()

    raised = together(
        lambda: fit(frozen(seed=0), whole(data(0)), FLCallback(files[0])),
        lambda: fit(frozen(seed=1), whole(data(1)), FLCallback(files[1])),
    )

    assert isinstance(raised[1], BaseModelError)
    assert "frozen base model" in str(raised[0])


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

    layers = {name.rpartition(".")[0] for name in published(server)}
    assert layers == expected


def test_a_selection_of_nothing_is_refused(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))
    callback = FLCallback(site_file("a", server.endpoint), select="haed.*")

    with pytest.raises(ConfigurationError, match=r"'haed\.\*' leaves nothing"):
        fit(Net(), whole(data()), callback)


def test_batch_counters_are_kept_as_integers(pair: Any) -> None:
    server, files = pair()
    loaders = [DataLoader(data(0), batch_size=4), DataLoader(data(1), batch_size=8)]

    together(
        lambda: fit(Net(), loaders[0], FLCallback(files[0])),
        lambda: fit(Net(), loaders[1], FLCallback(files[1])),
    )

    counter = published(server)["body.1.num_batches_tracked"]
    assert (int(counter), counter.dtype.name) == (12, "int64")


def test_reset_drops_the_optimizers_state_each_round(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=3))
    steps: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            state = trainer.optimizers[0].state
            steps.append(max((int(one["step"]) for one in state.values()), default=0))

    callback = FLCallback(site_file("a", server.endpoint), optimizer_state="reset")
    fit(Net(), DataLoader(data(), batch_size=11), callback, Watch())

    assert steps == [1, 0, 1, 0, 1, 0]


class Endless(IterableDataset[Any]):
    """Rows without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(data())


@pytest.mark.parametrize(
    ("loader", "settings", "expected"),
    [
        (DataLoader(Endless(), batch_size=4), {}, 22),
        (DataLoader(Endless(), batch_size=4), {"limit_train_batches": 2}, 8),
        (DataLoader(data(), batch_size=4), {"limit_train_batches": 0.5}, 12),
        (DataLoader(data(), batch_size=4), {"min_epochs": 10}, 22),
    ],
)
def test_examples_are_those_really_seen(
    loader: Any,
    settings: dict[str, Any],
    expected: int,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=2))
    callback = FLCallback(site_file("a", server.endpoint))

    trainer(max_epochs=1, callbacks=[callback], **settings).fit(Linear(), loader)

    assert [one.num_examples for one in records(server)] == [expected, expected]


def test_an_epoch_that_the_module_cuts_short_ends_its_round(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))

    class Short(Linear):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    callback = FLCallback(site_file("a", server.endpoint))
    fit(Short(), DataLoader(data(), batch_size=4), callback)

    assert [one.num_examples for one in records(server)] == [8, 8]


def test_several_optimizers_of_a_manual_loop_count_each_step(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2))

    class Two(Linear):
        automatic_optimization = False

        def training_step(self, batch: Any) -> Tensor:
            for optimizer in self.optimizers():
                loss = super().training_step(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    callback = FLCallback(site_file("a", server.endpoint), every_n_steps=4)
    fit(Two(), DataLoader(data(), batch_size=4), callback)

    assert [one.num_examples for one in records(server)] == [8, 8]


def test_the_plan_puts_its_schedule_first(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=2, schedule=Schedule(every_n_steps=3)))
    callback = FLCallback(site_file("a", server.endpoint), every_n_epochs=5)

    run = fit(Linear(), DataLoader(data(), batch_size=4), callback)

    assert run.global_step == 6


def test_switched_off_the_callback_does_nothing(monkeypatch: Any) -> None:
    monkeypatch.setenv("FLARE_SITE", "off")

    run = fit(Linear(), whole(data()), FLCallback(), max_epochs=3)

    assert run.current_epoch == 3


def test_without_a_federation_the_callback_says_how_to_get_one() -> None:
    with pytest.raises(ConfigurationError, match=r"FLARE_SITE is not set.*simulate"):
        FLCallback()


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_epochs": 1, "every_n_steps": 1},
        {"every_n_steps": 0},
        {"optimizer_state": "kept"},
    ],
)
def test_a_wrong_argument_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"every_n|>= 1|kept"):
        FLCallback("off", **wrong)


def test_a_site_that_leaves_gives_its_last_metrics(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))

    fit(Linear(), whole(data()), FLCallback(site_file("a", server.endpoint)))

    assert server.result().error == ""
    left = next(one for one in server.events if isinstance(one, SiteLeft))
    assert (left.reason, list(left.metrics)) == ("", ["val_weight"])
