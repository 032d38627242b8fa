"""What a site trained that must not be averaged is refused by name."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from ignite.engine import Events
from lightning.pytorch.callbacks import Callback
from torch import nn
from transformers import TrainerCallback

import flare_adapters.huggingface
import flare_adapters.lightning
from adapters import huggingface_runs, ignite_runs, lightning_runs
from adapters.scripts.huggingface_site import KINDS
from adapters.sites import models
from flare_adapters._torch import LocalSession, options
from flare_core import Admission, UpdateError
from site_scripts import plan
from support import RunServer, SiteFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    # lightning 2.6.6 on torch 2.13, in _pytree.py
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
]
Spoil = Callable[[nn.Module], object]
_WAIT_S = 60.0
_BERT = "bert"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for the good site."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


class _Spoiler(Callback):
    """Comes before the adapter's callback."""

    def __init__(self, spoil: Spoil) -> None:
        self._spoil = spoil

    def on_train_batch_end(
        self, trainer: Any, pl_module: nn.Module, *args: Any
    ) -> None:
        self._spoil(pl_module)


class _TrainerSpoiler(TrainerCallback):
    def __init__(self, spoil: Spoil) -> None:
        self._spoil = spoil

    def on_epoch_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self._spoil(model)


def _lightning(file: Path, spoil: Spoil) -> None:
    ours = flare_adapters.lightning.FLCallback(file)
    loader = lightning_runs.whole(lightning_runs.data(1))
    lightning_runs.fit(lightning_runs.Linear(), loader, _Spoiler(spoil), ours)


def _huggingface(file: Path, spoil: Spoil) -> None:
    ours = flare_adapters.huggingface.FLCallback(file)
    huggingface_runs.run(_BERT, file.parent / "out", _TrainerSpoiler(spoil), ours)


def _ignite(file: Path, spoil: Spoil) -> None:
    network = ignite_runs.linear()
    ignite_runs.play(
        network,
        ignite_runs.whole(ignite_runs.rows(1)),
        file,
        prepare=lambda engine: engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: spoil(network)
        ),
    )


_ADAPTERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Path, Spoil], None]]] = {
    "lightning": (lightning_runs.Linear, _lightning),
    "huggingface": (lambda: KINDS[_BERT](seed=0), _huggingface),
    "ignite": (ignite_runs.linear, _ignite),
}


def _first(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def _fill(value: float) -> Spoil:
    return lambda model: _first(model).data.fill_(value)


def _reshape(model: nn.Module) -> None:
    _first(model).data = torch.zeros(3, 5)


def _widen(model: nn.Module) -> None:
    _first(model).data = _first(model).data.double()


def _nothing(model: nn.Module) -> None:
    del model


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_fill(math.nan), r"tensor '.*weight': expected finite values, got NaN"),
        (_fill(math.inf), r"tensor '.*weight': expected finite values, got NaN or inf"),
        (_fill(1e9), r"most of it in tensor '.*weight': expected at most 1000 "),
        (_reshape, r"tensor '.*weight': expected F32 \(.*\), got F32 \(3, 5\)"),
        (_widen, r"tensor '.*weight': expected F32 \(.*\), got F64"),
        (_nothing, r"num_examples: expected at most 3, got \d+"),
    ],
    ids=["nan", "inf", "norm", "shape", "dtype", "examples"],
)
@pytest.mark.parametrize("adapter", list(_ADAPTERS))
def test_what_must_not_be_averaged_is_refused_by_name_and_the_run_goes_on(
    *,
    adapter: str,
    spoil: Spoil,
    words: str,
    run_server: RunServer,
    site_file: SiteFile,
    pool: ThreadPoolExecutor,
) -> None:
    make, train = _ADAPTERS[adapter]
    most = 3 if spoil is _nothing else None
    admission = Admission(most_norm=1000.0, most_examples=most)
    server = run_server(
        msgspec.structs.replace(plan(rounds=2, quorum=1), admission=admission)
    )
    good = pool.submit(_stand_still, site_file("a", server.endpoint), make())

    with pytest.raises(UpdateError, match=rf"site 'b': .*{words}"):
        train(site_file("b", server.endpoint), spoil)

    good.result(_WAIT_S)
    result = server.result()
    assert (result.rounds, result.error) == (2, "")
    first, *_, last = models(server)
    for name, array in first.items():
        np.testing.assert_array_equal(last[name], array)


def _stand_still(file: Path, model: nn.Module) -> None:
    """Play all rounds as a site that learns nothing, with no framework around."""
    session = LocalSession(options(file, None, None, "auto", "keep"))
    session.join(model, playable=math.inf, horizon="")
    while not session.final:
        session.saw(1)
        session.exchange()
    session.leave("the test is over")
