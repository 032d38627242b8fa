"""How a Lightning fit leaves a federation, or is not let in."""

from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from adapters.lightning_runs import Linear, Net, data, fit, frozen, whole
from adapters.sites import records, together
from flare_adapters.lightning import FLCallback
from flare_core import (
    BaseModelError,
    LayoutError,
    Plan,
    RunAbortedError,
    Selection,
    UpdateError,
)
from flare_core.application import (
    SiteLeft,
)
from support import RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]


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


def test_another_frozen_base_is_refused(pair: Any) -> None:
    _, files = pair()

    raised = together(
        lambda: fit(frozen(seed=0), whole(data(0)), FLCallback(files[0])),
        lambda: fit(frozen(seed=1), whole(data(1)), FLCallback(files[1])),
    )

    assert isinstance(raised[1], BaseModelError)
    assert "frozen base model" in str(raised[0])


def test_a_site_that_leaves_gives_its_last_metrics(
    run_server: RunServer, site_file: SiteFile
) -> None:
    server = run_server(Plan(rounds=1))

    fit(Linear(), whole(data()), FLCallback(site_file("a", server.endpoint)))

    assert server.result().error == ""
    left = server.told(SiteLeft)[0]
    assert (left.reason, list(left.metrics)) == ("", ["val_weight"])
