"""Sites of several ranks, and FLStrategy: real processes, gloo on loopback."""

import os
import pickle  # noqa: TID251 - Lightning pickles strategies for ddp_spawn
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import nn

from adapters.scripts import lightning_site
from adapters.scripts.lightning_site import LEARNING_RATE, Net, rows
from flare_adapters._torch import LocalSession, options
from flare_adapters.lightning import FLCallback, FLStrategy
from flare_adapters.lightning._loop import refuse_engine
from flare_core import FedProx, Plan, Selection, UnsupportedError
from support import RunServer, SiteFile

ROUNDS = 3
pytestmark = [
    pytest.mark.timeout(300),  # several processes import the framework on one core
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


def centralised() -> dict[str, torch.Tensor]:
    net = Net(seed=0)
    parts = [rows(index).tensors for index in range(2)]
    features = torch.cat([part[0] for part in parts])
    target = torch.cat([part[1] for part in parts])
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        nn.functional.mse_loss(net.net(features), target).backward()
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize(
    ("launcher", "strategy"),
    [
        ([], "ddp"),
        ([], "FL:ddp"),
        ([], "FL:ddp_spawn"),
        ([], "FL:single_device"),
        (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], "ddp"),
    ],
    ids=["ddp", "FL:ddp", "FL:ddp_spawn", "FL:single_device", "torchrun"],
)
def test_a_federation_with_such_a_site_equals_centralised_training(
    launcher: list[str],
    strategy: str,
    run_server: RunServer,
    site_file: SiteFile,
    tmp_path: Path,
) -> None:
    server = run_server(Plan(rounds=ROUNDS, selection=Selection(sites=2)))
    sites = []
    for index, name in enumerate(("a", "b")):
        file = site_file(name, server.endpoint, index, 2)
        command = [sys.executable, *(launcher if index == 0 else [])]
        command += [lightning_site.__file__, "--site", str(file)]
        command += ["--index", str(index), "--out", str(tmp_path / f"{name}.pt")]
        command += ["--strategy", strategy if index == 0 else "single_device"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        sites.append(subprocess.Popen(command, env=environment))

    codes = [site.wait(280) for site in sites]

    assert codes == [0, 0]
    assert server.result().rounds == ROUNDS
    expected = centralised()
    for name in ("a", "b"):
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


def test_fl_strategy_is_an_instance_of_what_it_builds_on() -> None:
    by_name = FLStrategy("ddp", site="off")
    by_object = FLStrategy(SingleDeviceStrategy("cpu"), site="off")

    assert isinstance(by_name, DDPStrategy)
    assert isinstance(by_object, SingleDeviceStrategy)
    assert isinstance(FLStrategy("single_device", site="off"), SingleDeviceStrategy)


def test_fl_strategy_survives_the_pickling_of_a_spawning_launcher() -> None:
    strategy = FLStrategy("ddp_spawn", site="off", every_n_steps=3)

    again = pickle.loads(pickle.dumps(strategy))  # noqa: S301 - see the import

    assert isinstance(again, DDPStrategy)
    assert again._fl_callback._options.schedule.every_n_steps == 3


def test_fl_strategy_cannot_be_built_on_auto() -> None:
    with pytest.raises(ValueError, match=r"'auto'.*add FLCallback\(\)"):
        FLStrategy("auto", site="off")


def test_fl_strategy_names_the_strategies_there_are() -> None:
    with pytest.raises(ValueError, match=r"'dpp'.*known are .*ddp_spawn"):
        FLStrategy("dpp", site="off")


def test_a_pytorch_lightning_trainer_is_told_to_take_the_callback() -> None:
    strategy = FLStrategy("single_device", site="off")

    with pytest.raises(ValueError, match=r"callbacks=\[FLCallback\(\)\]"):
        pytorch_lightning.Trainer(strategy=strategy, logger=False)


def test_the_callback_of_a_strategy_is_not_added_beside_the_users() -> None:
    trainer = lightning_site.trainer(
        strategy=FLStrategy(SingleDeviceStrategy("cpu"), site="off"),
        callbacks=[FLCallback("off")],
        max_epochs=1,
    )

    with pytest.warns(UserWarning, match="what FLStrategy was told.* not used"):
        trainer.fit(Net(), torch.utils.data.DataLoader(rows(0), batch_size=8))

    found = [one for one in trainer.callbacks if isinstance(one, FLCallback)]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("engine", "mu", "message"),
    [
        (DeepSpeedStrategy, 0.1, r"FedProx\(mu=0.1\) .* DeepSpeed steps inside"),
        (DeepSpeedStrategy, 0, "master weights of its own"),
        (FSDPStrategy, 0, "flattens parameters.*ModelParallelStrategy"),
    ],
)
def test_an_engine_that_hides_weights_is_refused(
    engine: type[Strategy],
    mu: float,
    message: str,
    run_server: RunServer,
    site_file: SiteFile,
) -> None:
    server = run_server(Plan(rounds=1, local=FedProx(mu=mu)))
    session = LocalSession(
        options(str(site_file("a", server.endpoint)), None, None, "auto", "keep")
    )
    hidden = object.__new__(engine)  # what it needs to be made is not installed

    with pytest.raises(UnsupportedError, match=message) as refused:
        refuse_engine(session, hidden)

    session.fail(refused.value)


def test_ddp_is_not_refused(run_server: RunServer, site_file: SiteFile) -> None:
    server = run_server(Plan(rounds=1))
    session = LocalSession(
        options(str(site_file("a", server.endpoint)), None, None, "auto", "keep")
    )

    refuse_engine(session, DDPStrategy())

    session.leave("the test is over")
